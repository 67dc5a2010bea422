"""The delta rule in chunks, with a hand-written backward pass.

With queries q_t, keys k_t and erase keys a_t [K], values v_t [V] and log decays g_t (per channel
[K], per head, or none):

    S_t = D_t S_{t-1} + k_t (v_t - a_t^T D_t S_{t-1})^T,    o_t = S_t^T q_t,    D_t = diag(exp(g_t))

(Yang et al., DeltaNet, arXiv 2406.06484; Gated DeltaNet, arXiv 2412.06464; KDA, arXiv 2510.26692).
What was erased may have a key b_t of its own, and a_t may read S_{t-1} before it decays (RWKV7,
arXiv 2503.14456). Inside a chunk the corrected values u_t depend on each other through a triangular
system, with scores from `delta_intra_chunk`; between chunks a loop carries the state, here.
fla's signatures are in `delta_rule`, `kda`, `comba`, `delta_product` and `dplr`.

Shape letters: B batch, T tokens, N sequences, H heads, K key and V value channels, C tokens of a
chunk, P chunks of all heads, R 1, or 2 if there are keys b.
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
from flame_accel.kernels.recurrence.decay import one_token_each
from flame_accel.kernels.recurrence.delta_intra_chunk import intra_chunk

CHUNK = 32
"""Tokens of a chunk."""


@without_autocast
def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor | None = None,
    g: Tensor | None = None,
    *,
    scale: float,
    before_decay: bool = False,
    initial_state: Tensor | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] in the dtype of `v`, and final states in fp32.

    States are [N, H, K, V], or [N, H, V, K] if `state_v_first`.

    Args:
        q: [B, T, H, K].
        k: keys of what is written, [B, T, H, K].
        v: [B, T, H, V].
        a: keys of what is erased, times the strength, [B, T, H, K].
        b: keys the erased is taken from; `k` if None. [B, T, H, K].
        g: log decays, [B, T, H, K] per channel, [B, T, H, 1] per head, or None.
        scale: factor of the outputs.
        before_decay: `a` reads the state before the decay of its own token.
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
    q = q.float() * scale
    if one_token_each(tokens, cu_seqlens):
        o, state = _step(q, k, v, a, b, g, before_decay, state)
    else:
        chunks = cut(batch, tokens, cu_seqlens, CHUNK)
        o, state = _DeltaAttention.apply(q, k, v, a, b, g, before_decay, state, chunks)
    return o, state.mT.contiguous() if state_v_first else state


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor | None,
    g: Tensor | None,
    before_decay: bool,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token of every sequence: the recurrence itself."""

    def column(x: Tensor) -> Tensor:
        return x.float().reshape(-1, *x.shape[2:]).unsqueeze(-1)

    decayed = state if g is None else state * column(g).exp()
    erased = column(a).mT @ (state if before_decay else decayed)
    if b is None:
        state = decayed + column(k) * (column(v).mT - erased)
    else:
        state = decayed + column(k) * column(v).mT - column(b) * erased
    o = column(q).mT @ state
    return o.reshape(v.shape).to(v.dtype), state


class _DeltaAttention(torch.autograd.Function):
    """The chunked form; the state is [N, H, K, V] fp32.

    With `inverse` = (I + L)^-1, L the scores of erase keys with the keys before them, the corrected
    values of a chunk are u = inverse (v - a_in S); [u; v] are the values of keys [b; k].
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor | None,
        g: Tensor | None,
        before_decay: bool,
        initial: Tensor,
        chunks: Chunks,
    ) -> tuple[Tensor, Tensor]:
        x = _to_chunks((q, a), chunks)
        y = _to_chunks((k,) if b is None else (b, k), chunks)
        gc = None if g is None else to_chunks(g, chunks).flatten(0, 1)
        inside = intra_chunk(x, y, gc, before_decay)
        scores, x_in, y_out, decay = inside[:4]
        size = chunks.size
        inverse = _invert(scores[:, size:, :size])
        values = vc = to_chunks(v, chunks).flatten(0, 1)
        if b is not None:
            values = torch.cat((scores[:, size:, size:] @ vc.neg(), vc), 1)
        own = inverse @ values[:, :size]
        erase = inverse @ x_in[:, size:]
        if b is None:
            values = torch.empty_like(vc)
        states, final = _scan(own, erase, y_out, decay, values, initial, chunks)
        o = (scores[:, :size] @ values).baddbmm_(x_in[:, :size], states)
        ctx.chunks, ctx.num_heads, ctx.inside_backward = chunks, q.shape[2], inside.backward
        ctx.dtypes = [None if z is None else z.dtype for z in (q, k, v, a, b, g)]
        ctx.save_for_backward(inverse, erase, values, states, *inside[:4], *inside.saved)
        return from_chunks(o.unflatten(0, (-1, ctx.num_heads)), chunks, v.dtype), final

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        chunks: Chunks = ctx.chunks
        inverse, erase, values, states, scores, x_in, y_out, decay, *saved = ctx.saved_tensors
        size = chunks.size
        do = to_chunks(grads[0], chunks).flatten(0, 1)
        du = scores[:, :size, :size].mT @ do
        dstates = x_in[:, :size].mT @ do
        after, dinitial = _scan_back(du, dstates, erase, y_out, decay, grads[1], chunks)
        dv = inverse.mT @ du
        dx_out = torch.cat((do, dv.neg()), 1)
        kept = None if decay is None else (states * after).sum(-1) * decay.squeeze(-1)
        if values.shape[1] > size:
            dv = (scores[:, :, size:].mT @ dx_out).baddbmm_(y_out[:, size:], after)
        dx, dy, dg = ctx.inside_backward(
            saved, dx_out @ values.mT, dx_out @ states.mT, values @ after.mT, kept
        )
        dq, da = dx.unflatten(1, (2, size)).unbind(1)
        *db, dk = dy.unflatten(1, (-1, size)).unbind(1)
        inner = [
            None if z is None else from_chunks(z.unflatten(0, (-1, ctx.num_heads)), chunks, dtype)
            for z, dtype in zip(
                (dq, dk, dv, da, db[0] if db else None, dg), ctx.dtypes, strict=True
            )
        ]
        return *inner, None, dinitial, None


def _to_chunks(parts: tuple[Tensor, ...], chunks: Chunks) -> Tensor:
    """[B, T, H, K] each -> [P, C of the first, C of the second, ...; K]."""
    return torch.cat([to_chunks(z, chunks) for z in parts], 2).flatten(0, 1)


def _invert(lower: Tensor) -> Tensor:
    """(I + lower)^-1 of strictly lower triangular matrices [P, C, C]."""
    eye = torch.eye(lower.shape[-1], device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)


def _scan(
    own: Tensor,
    erase: Tensor,
    y_out: Tensor,
    decay: Tensor | None,
    values: Tensor,
    initial: Tensor,
    chunks: Chunks,
) -> tuple[Tensor, Tensor]:
    """States before each chunk [P, K, V] and after the last chunk of each sequence [N, H, K, V].

    Fills in `values` [P, R * C, V] what depends on the states, the corrected values.
    """
    num_heads, size = initial.shape[1], chunks.size
    carry = sort_sequences(initial, chunks).clone(memory_format=torch.contiguous_format)
    carry = carry.flatten(0, 1)
    states = own.new_empty(len(own), *carry.shape[1:])
    for first, count in chunks.rounds:
        here = slice(first * num_heads, (first + count) * num_heads)
        carried = carry[: count * num_heads]
        states[here] = carried
        torch.baddbmm(own[here], erase[here], carried, alpha=-1, out=values[here, :size])
        if decay is not None:
            carried.mul_(decay[here])
        carried.baddbmm_(y_out[here].mT, values[here])
    return states, unsort_sequences(carry.unflatten(0, (-1, num_heads)), chunks)


def _scan_back(
    du: Tensor,
    dstates: Tensor,
    erase: Tensor,
    y_out: Tensor,
    decay: Tensor | None,
    dfinal: Tensor,
    chunks: Chunks,
) -> tuple[Tensor, Tensor]:
    """Gradients of the states after each chunk [P, K, V], and of the initial states.

    Adds to those of the corrected values, `du` [P, C, V], what reaches them through the states.
    `dstates` are those of the states before each chunk, through the outputs of the chunk.
    """
    num_heads, size = dfinal.shape[1], chunks.size
    carry = sort_sequences(dfinal, chunks).clone(memory_format=torch.contiguous_format)
    carry = carry.flatten(0, 1)
    after = torch.empty_like(dstates)
    for first, count in reversed(chunks.rounds):
        here = slice(first * num_heads, (first + count) * num_heads)
        carried, reached = carry[: count * num_heads], du[here]
        after[here] = carried
        reached.baddbmm_(y_out[here, :size], carried)
        if decay is not None:
            carried.mul_(decay[here])
        carried.add_(dstates[here]).baddbmm_(erase[here].mT, reached, alpha=-1)
    return after, unsort_sequences(carry.unflatten(0, (-1, num_heads)), chunks)
