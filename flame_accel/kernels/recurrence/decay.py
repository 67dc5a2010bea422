"""Linear attention with a diagonal decay, in chunks, with a hand-written backward pass.

With queries and keys q_t, k_t [K], values v_t [V] and log decays g_t (per channel [K], per head, or
none):

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

(Yang et al., Gated Linear Attention Transformers, arXiv 2312.06635, section 4). Inside a chunk the
tokens attend to each other, with scores from `decay_intra_chunk`; between chunks a loop carries
the state, here. fla's signatures are in `gla`.

Shape letters: B batch, T tokens, N sequences, H heads, K key and V value channels, C tokens of a
chunk, P chunks of all heads.
"""

from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    Chunks,
    cut,
    from_chunks,
    sort_sequences,
    to_chunks,
    unsort_sequences,
)
from flame_accel.kernels.recurrence.decay_intra_chunk import intra_chunk

CHUNK = 32
"""Tokens of a chunk."""


@without_autocast
def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
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
    batch, tokens, num_heads, width = q.shape
    num_sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        state = q.new_zeros(num_sequences, num_heads, width, v.shape[-1], dtype=torch.float32)
    else:
        state = initial_state.float()
        state = state.mT if state_v_first else state
    if one_token_each(tokens, cu_seqlens):
        o, state = _step(q, k, v, g, scale, state)
    else:
        chunks = cut(batch, tokens, cu_seqlens, CHUNK)
        o, state = _DecayAttention.apply(q, k, v, g, scale, state, chunks)
    return o, state.mT.contiguous() if state_v_first else state


def one_token_each(tokens: int, cu_seqlens: Tensor | None) -> bool:
    """Whether every sequence has a single token, as in generation."""
    if cu_seqlens is None:
        return tokens == 1
    return cu_seqlens.numel() == tokens + 1 and bool((cu_seqlens.diff() == 1).all())


def _step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of every sequence: the recurrence itself."""
    num_heads, width = q.shape[2:]
    q_, k_ = (x.float().reshape(-1, num_heads, width, 1) for x in (q, k))
    v_ = v.float().reshape(-1, num_heads, 1, v.shape[-1])
    if g is not None:
        state = state * g.float().reshape(-1, num_heads, g.shape[-1], 1).exp()
    state = state + k_ * v_
    o = (q_ * scale).mT @ state
    return o.reshape(v.shape).to(v.dtype), state


class _DecayAttention(torch.autograd.Function):
    """The chunked form; the state is [N, H, K, V] fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        scale: float,
        initial: Tensor,
        chunks: Chunks,
    ) -> tuple[Tensor, Tensor]:
        qc, kc, vc = (to_chunks(x, chunks).flatten(0, 1) for x in (q, k, v))
        gc = None if g is None else to_chunks(g, chunks).flatten(0, 1)
        inside = intra_chunk(qc * scale, kc, gc)
        states, final = scan_states(inside.k_out.mT @ vc, inside.decay, initial, chunks)
        o = (inside.scores @ vc).baddbmm_(inside.q_in, states)
        ctx.scale, ctx.chunks, ctx.num_heads = scale, chunks, q.shape[2]
        ctx.dtypes = (q.dtype, k.dtype, v.dtype, None if g is None else g.dtype)
        ctx.inside_backward = inside.backward
        ctx.save_for_backward(vc, states, *inside[:4], *inside.saved)
        return from_chunks(o.unflatten(0, (-1, ctx.num_heads)), chunks, v.dtype), final

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        chunks: Chunks = ctx.chunks
        v, states, scores, q_in, k_out, decay, *saved = ctx.saved_tensors
        do = to_chunks(grads[0], chunks).flatten(0, 1)
        dstates, dinitial = _scan_back(q_in.mT @ do, decay, grads[1], chunks)
        dv = (scores.mT @ do).baddbmm_(k_out, dstates)
        kept = None if decay is None else (states * dstates).sum(-1) * decay.squeeze(-1)
        dq, dk, dg = ctx.inside_backward(saved, do @ v.mT, do @ states.mT, v @ dstates.mT, kept)
        inner = [
            None if y is None else from_chunks(y.unflatten(0, (-1, ctx.num_heads)), chunks, dtype)
            for y, dtype in zip((dq.mul_(ctx.scale), dk, dv, dg), ctx.dtypes, strict=True)
        ]
        return *inner, None, dinitial, None


def scan_states(
    updates: Tensor, decay: Tensor | None, initial: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor]:
    """States before each chunk [P, K, V] and after the last chunk of each sequence [N, H, K, V]."""
    num_heads = initial.shape[1]
    updates = updates.unflatten(0, (-1, num_heads))
    decay = None if decay is None else decay.unflatten(0, (-1, num_heads))
    states = torch.empty_like(updates)
    carry = sort_sequences(initial, chunks).clone()
    for first, count in chunks.rounds:
        here, carried = slice(first, first + count), carry[:count]
        states[here] = carried
        if decay is not None:
            carried.mul_(decay[here])
        carried.add_(updates[here])
    return states.flatten(0, 1), unsort_sequences(carry, chunks)


def _scan_back(
    dstates: Tensor, decay: Tensor | None, dfinal: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor]:
    """From gradients of the states before each chunk: those of the states after it, and of h0."""
    num_heads = dfinal.shape[1]
    dstates = dstates.unflatten(0, (-1, num_heads))
    decay = None if decay is None else decay.unflatten(0, (-1, num_heads))
    after = torch.empty_like(dstates)
    carry = sort_sequences(dfinal, chunks).clone()
    for first, count in reversed(chunks.rounds):
        here, carried = slice(first, first + count), carry[:count]
        after[here] = carried
        if decay is not None:
            carried.mul_(decay[here])
        carried.add_(dstates[here])
    return after.flatten(0, 1), unsort_sequences(carry, chunks)
