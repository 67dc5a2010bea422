"""Linear attention with a diagonal decay, in chunks, with a hand-written backward pass.

With queries and keys q_t, k_t [K], values v_t [V] and log decays g_t (per channel [K], per head, or
none):

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

(Yang et al., Gated Linear Attention Transformers, arXiv 2312.06635, section 4). Within a chunk the
tokens attend to each other, with scores from `linear_attention_intra_chunk`; the inter-chunk scan
carries the state, here. fla's names and signatures are in `gla`.

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width, C tokens of a
chunk, P chunks of all heads.
"""

from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    ChunkLayout,
    ScannedStates,
    build_chunk_layout,
    from_padded_chunk_batch,
    restore_state_order,
    sort_states_longest_first,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.linear_attention_intra_chunk import (
    compute_decayed_scores_queries_keys,
)
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndFinalStates,
    every_sequence_has_one_token,
    fp32_key_first_state_or_zeros,
)

CHUNK_SIZE = 32
"""Tokens of a chunk."""


@without_autocast
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndFinalStates:
    """Outputs [B, T, H, V] in the dtype of `v`, and final states in fp32.

    States are [N, H, K, V], or [N, H, V, K] if `state_v_first`.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        g: log decays, [B, T, H, K] per channel, [B, T, H, 1] per head, or None.
        scale: factor of the outputs.
        initial_state: like the final states; zeros if None.
        state_v_first: the layout of the states.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    state = fp32_key_first_state_or_zeros(
        initial_state, q, v, state_v_first=state_v_first, cu_seqlens=cu_seqlens
    )
    if every_sequence_has_one_token(q.shape[1], cu_seqlens):
        o, state = _recurrent_step_of_one_token(q, k, v, g, scale, state)
    else:
        layout = build_chunk_layout(q.shape[0], q.shape[1], cu_seqlens, CHUNK_SIZE)
        o, state = _ChunkedLinearAttention.apply(q, k, v, g, scale, state, layout)
    return o, state.mT.contiguous() if state_v_first else state


def _recurrent_step_of_one_token(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float, state: Tensor
) -> OutputsAndFinalStates:
    """The recurrence itself, for one token of every sequence; the state is [N, H, K, V]."""
    num_heads, width = q.shape[2:]
    q_, k_ = (x.float().reshape(-1, num_heads, width, 1) for x in (q, k))
    v_ = v.float().reshape(-1, num_heads, 1, v.shape[-1])
    if g is not None:
        state = state * g.float().reshape(-1, num_heads, g.shape[-1], 1).exp()
    state = state + k_ * v_
    o = (q_ * scale).mT @ state
    return o.reshape(v.shape).to(v.dtype), state


class _ChunkedLinearAttention(torch.autograd.Function):
    """The chunked form; the state is [N, H, K, V] fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        scale: float,
        initial_state: Tensor,
        layout: ChunkLayout,
    ) -> tuple[Tensor, Tensor]:
        qc, kc, vc = (to_padded_fp32_chunk_batch(x, layout).flatten(0, 1) for x in (q, k, v))
        gc = None if g is None else to_padded_fp32_chunk_batch(g, layout).flatten(0, 1)
        intra = compute_decayed_scores_queries_keys(qc * scale, kc, gc)
        states, final_state = inter_chunk_scan(
            intra.k_to_end.mT @ vc, intra.chunk_decay, initial_state, layout
        )
        o = (intra.scores @ vc).baddbmm_(intra.q_from_start, states)
        ctx.scale, ctx.layout, ctx.num_heads = scale, layout, q.shape[2]
        ctx.dtypes = (q.dtype, k.dtype, v.dtype, None if g is None else g.dtype)
        ctx.intra_chunk_backward = intra.backward
        ctx.save_for_backward(vc, states, *intra[:4], *intra.saved)
        return from_padded_chunk_batch(
            o.unflatten(0, (-1, ctx.num_heads)), layout, v.dtype
        ), final_state

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout: ChunkLayout = ctx.layout
        v, states, scores, q_from_start, k_to_end, chunk_decay, *saved = ctx.saved_tensors
        do = to_padded_fp32_chunk_batch(grads[0], layout).flatten(0, 1)
        dstates_after, dinitial_state = inter_chunk_scan(
            q_from_start.mT @ do, chunk_decay, grads[1], layout, reverse=True
        )
        dv = (scores.mT @ do).baddbmm_(k_to_end, dstates_after)
        dlog_chunk_decay = None
        if chunk_decay is not None:
            dlog_chunk_decay = (states * dstates_after).sum(-1) * chunk_decay.squeeze(-1)
        dq, dk, dg = ctx.intra_chunk_backward(
            saved, do @ v.mT, do @ states.mT, v @ dstates_after.mT, dlog_chunk_decay
        )
        dqkvg = [
            None
            if y is None
            else from_padded_chunk_batch(y.unflatten(0, (-1, ctx.num_heads)), layout, dtype)
            for y, dtype in zip((dq.mul_(ctx.scale), dk, dv, dg), ctx.dtypes, strict=True)
        ]
        return *dqkvg, None, dinitial_state, None


def inter_chunk_scan(
    updates: Tensor,
    chunk_decay: Tensor | None,
    initial_state: Tensor,
    layout: ChunkLayout,
    *,
    reverse: bool = False,
) -> ScannedStates:
    """S' = chunk_decay * S + update, from chunk to chunk of every sequence.

    Args:
        updates: what each chunk adds to the state [P, K, V].
        chunk_decay: [P, K or 1, 1], or None.
        initial_state: [N, H, K, V].
        layout: the chunks.
        reverse: from the last chunk to the first, which is how gradients of states flow.

    Returns:
        The states that each chunk starts from [P, K, V], and those after the scan [N, H, K, V].
    """
    num_heads = initial_state.shape[1]
    updates = updates.unflatten(0, (-1, num_heads))
    decay = None if chunk_decay is None else chunk_decay.unflatten(0, (-1, num_heads))
    states = torch.empty_like(updates)
    carry = sort_states_longest_first(initial_state, layout).clone()
    for first, count in reversed(layout.rounds) if reverse else layout.rounds:
        here, carried = slice(first, first + count), carry[:count]
        states[here] = carried
        if decay is not None:
            carried.mul_(decay[here])
        carried.add_(updates[here])
    return ScannedStates(states.flatten(0, 1), restore_state_order(carry, layout))
