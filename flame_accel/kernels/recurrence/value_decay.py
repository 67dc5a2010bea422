"""Linear attention whose decay is per value channel, in chunks; that per key channel is in `decay`.

    S_t = S_{t-1} diag(exp(g_t)) + k_t v_t^T,    o_t = scale * S_t^T q_t

(the first half of gated slot attention, Zhang et al., arXiv 2409.07146). It is the other side of
the attention in `decay`: with S transposed, values are keys that decay, keys are values, and o is
what that attention has as the gradient of its queries where the gradient of its outputs is q. So
the passes of `decay` serve here with exchanged roles, and hold for decays of any strength.

Shape letters: B batch, T tokens, N sequences, H heads, K key and V value channels.
"""

from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import Chunks, cut, from_chunks, to_chunks
from flame_accel.kernels.recurrence.decay import (
    CHUNK,
    decay_attention,
    one_token_each,
    scan_states,
)
from flame_accel.kernels.recurrence.decay_intra_chunk import intra_chunk


@without_autocast
def value_decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] in the dtype of `v`, and final states in fp32.

    As `decay.decay_attention`, with `g` [B, T, H, V]. States are [N, H, K, V], or [N, H, V, K] if
    `state_v_first`.
    """
    batch, tokens, num_heads, width = q.shape
    num_sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        state = q.new_zeros(num_sequences, num_heads, width, v.shape[-1], dtype=torch.float32)
    else:
        state = initial_state.float()
        state = state.mT if state_v_first else state
    if one_token_each(tokens, cu_seqlens):
        q_, k_, v_, g_ = (x.float().reshape(num_sequences, num_heads, -1) for x in (q, k, v, g))
        state = state * g_.exp().unsqueeze(-2) + k_.unsqueeze(-1) * v_.unsqueeze(-2)
        o = ((q_ * scale).unsqueeze(-2) @ state).reshape(v.shape).to(v.dtype)
    else:
        chunks = cut(batch, tokens, cu_seqlens, CHUNK)
        o, state = _ValueDecay.apply(q, k, v, g, scale, state, chunks, cu_seqlens)
    return o, state.mT.contiguous() if state_v_first else state


class _ValueDecay(torch.autograd.Function):
    """The chunked form; the state is [N, H, K, V] fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        scale: float,
        initial: Tensor,
        chunks: Chunks,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, g, initial, cu_seqlens)
        ctx.scale = scale
        qc, kc, vc, gc = (to_chunks(x, chunks).flatten(0, 1) for x in (q, k, v, g))
        inside = intra_chunk(vc, vc, gc)
        start = initial.mT.contiguous()
        states, final = scan_states(inside.k_out.mT @ kc, inside.decay, start, chunks)
        qc *= scale
        none = torch.zeros_like(vc)
        kept = none[:, 0]
        o, *_ = inside.backward(inside.saved, qc @ kc.mT, qc @ states.mT, none, kept)
        o = from_chunks(o.unflatten(0, (-1, q.shape[2])), chunks, v.dtype)
        return o, final.mT.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, initial, cu_seqlens = ctx.saved_tensors
        leaves = [x.detach().float().requires_grad_() for x in (k, v, g, initial)]
        k_, v_, g_, initial_ = leaves
        with torch.enable_grad():
            outputs = decay_attention(
                grads[0].float(), v_, k_, g_, scale=ctx.scale, initial_state=initial_,
                state_v_first=True, cu_seqlens=cu_seqlens,
            )  # fmt: skip
        dk, dv, dg, dinitial = torch.autograd.grad(outputs, leaves, (q.float(), grads[1]))
        dq = outputs[0].detach().to(q.dtype)
        return dq, dk.to(k.dtype), dv.to(v.dtype), dg.to(g.dtype), None, dinitial, None, None
