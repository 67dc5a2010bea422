"""Linear attention with a decay per value channel, in chunks.

    S_t = S_{t-1} diag(exp(g_t)) + k_t v_t^T,    o_t = scale * S_t^T q_t

(the first half of gated slot attention, Zhang et al., arXiv 2409.07146). It is dual to the decay
per key channel of `linear_attention`: with S transposed, values are keys that decay, keys are
values, and o is the gradient of the queries of that attention where the gradient of its outputs is
q. So its forward and backward passes compute this one with exchanged roles, for decays of any
strength.

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width.
"""

from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    ChunkLayout,
    build_chunk_layout,
    from_padded_chunk_batch,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.linear_attention import (
    CHUNK_SIZE,
    inter_chunk_scan,
    linear_attention,
)
from flame_accel.kernels.recurrence.linear_attention_intra_chunk import (
    compute_decayed_scores_queries_keys,
)
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndFinalStates,
    every_sequence_has_one_token,
    fp32_key_first_state_or_zeros,
)


@without_autocast
def linear_attention_with_value_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndFinalStates:
    """Outputs [B, T, H, V] in the dtype of `v`, and final states in fp32.

    As `linear_attention.linear_attention`, with `g` [B, T, H, V]. States are [N, H, K, V], or
    [N, H, V, K] if `state_v_first`.
    """
    state = fp32_key_first_state_or_zeros(
        initial_state, q, v, state_v_first=state_v_first, cu_seqlens=cu_seqlens
    )
    if every_sequence_has_one_token(q.shape[1], cu_seqlens):
        q_, k_, v_, g_ = (x.float().reshape(*state.shape[:2], -1) for x in (q, k, v, g))
        state = state * g_.exp().unsqueeze(-2) + k_.unsqueeze(-1) * v_.unsqueeze(-2)
        o = ((q_ * scale).unsqueeze(-2) @ state).reshape(v.shape).to(v.dtype)
    else:
        layout = build_chunk_layout(q.shape[0], q.shape[1], cu_seqlens, CHUNK_SIZE)
        o, state = _ChunkedValueDecay.apply(q, k, v, g, scale, state, layout, cu_seqlens)
    return o, state.mT.contiguous() if state_v_first else state


class _ChunkedValueDecay(torch.autograd.Function):
    """The chunked form; the state is [N, H, K, V] fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        scale: float,
        initial_state: Tensor,
        layout: ChunkLayout,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, g, initial_state, cu_seqlens)
        ctx.scale = scale
        qc, kc, vc, gc = (to_padded_fp32_chunk_batch(x, layout).flatten(0, 1) for x in (q, k, v, g))
        # values take the place of keys, and of queries, which their gradient does not depend on
        intra = compute_decayed_scores_queries_keys(vc, vc, gc)
        states, final_state = inter_chunk_scan(
            intra.k_to_end.mT @ kc, intra.chunk_decay, initial_state.mT.contiguous(), layout
        )
        # not in place: of one head without padding these are the queries themselves
        qc = qc * scale
        dk_to_end = torch.zeros_like(vc)
        dlog_chunk_decay = dk_to_end[:, 0]
        o, *_ = intra.backward(intra.saved, qc @ kc.mT, qc @ states.mT, dk_to_end, dlog_chunk_decay)
        o = from_padded_chunk_batch(o.unflatten(0, (-1, q.shape[2])), layout, v.dtype)
        return o, final_state.mT.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, initial_state, cu_seqlens = ctx.saved_tensors
        leaves = [x.detach().float().requires_grad_() for x in (k, v, g, initial_state)]
        k_, v_, g_, state_ = leaves
        with torch.enable_grad():
            outputs = linear_attention(
                grads[0].float(), v_, k_, g_, scale=ctx.scale, initial_state=state_,
                state_v_first=True, cu_seqlens=cu_seqlens,
            )  # fmt: skip
        dk, dv, dg, dinitial_state = torch.autograd.grad(outputs, leaves, (q.float(), grads[1]))
        dq = outputs[0].detach().to(q.dtype)
        dkvg = (d.to(x.dtype) for d, x in zip((dk, dv, dg), (k, v, g), strict=True))
        return dq, *dkvg, None, dinitial_state, None, None
