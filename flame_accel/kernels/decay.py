"""Linear attention with a diagonal decay, in chunks, with a hand-written backward pass. Nothing of fla is here.

With queries, keys q_t, k_t [K], values v_t [V] and log decays g_t (per channel [K], per head, or none):

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

(Yang et al., Gated Linear Attention Transformers, arXiv 2312.06635, section 4). Inside a chunk the tokens attend to each
other with A_ij = sum_k q_ik k_jk exp(G_ik - G_jk), G the running sum of g; between chunks the state is carried on.

No exponent here is ever large: a decay between two tokens is the product of two factors below 1, from the later token
back to a boundary and from there to the earlier one. Boundaries halve the chunk until blocks of 8 tokens remain; there
one reference in the middle keeps exponents within 4 steps of at most `STRONGEST`, which fp32 holds.

Shape letters: B batch, T tokens, N sequences, H heads, K key and V value channels, C tokens of a chunk, P all chunks of
all heads, n blocks of a chunk.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.chunking import (
    Chunks,
    cut,
    from_chunks,
    sort_sequences,
    to_chunks,
    unsort_sequences,
)
from flame_accel.kernels.precision import without_autocast

BLOCK = 8
"""Tokens whose decays are taken relative to one reference."""
STRONGEST = -20.0
"""Log decays per channel are cut off here: exp(-20) = 2e-9 of a state is below what fp32 keeps of it."""
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
    """Outputs [B, T, H, V] in the dtype of `v` and final states [N, H, K, V] ([N, H, V, K] if `state_v_first`) in fp32.

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
    if _one_token_each(tokens, cu_seqlens):
        o, state = _step(q, k, v, g, scale, state)
    else:
        chunks = cut(batch, tokens, cu_seqlens, CHUNK)
        o, state = DecayAttention.apply(q, k, v, g, scale, state, chunks)
    return o, state.mT.contiguous() if state_v_first else state


def _one_token_each(tokens: int, cu_seqlens: Tensor | None) -> bool:
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


class DecayAttention(torch.autograd.Function):
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
        ctx.scale, ctx.chunks, ctx.num_heads = scale, chunks, q.shape[2]
        ctx.dtypes = (q.dtype, k.dtype, v.dtype, None if g is None else g.dtype)
        qc, kc, vc = (to_chunks(x, chunks).flatten(0, 1) for x in (q, k, v))
        qc = qc * scale
        gc = None if g is None else to_chunks(g, chunks).flatten(0, 1)
        a, q_in, k_out, decay, saved = _decay_forward(qc, kc, gc)
        states, final = _scan(k_out.mT @ vc, decay, initial, chunks)
        o = torch.baddbmm(a @ vc, q_in, states)
        ctx.save_for_backward(qc, kc, vc, a, q_in, k_out, decay, states, *saved)
        return from_chunks(o.unflatten(0, (-1, ctx.num_heads)), chunks, v.dtype), final

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        chunks: Chunks = ctx.chunks
        q, k, v, a, q_in, k_out, decay, states, *saved = ctx.saved_tensors
        do = to_chunks(grads[0], chunks).flatten(0, 1)
        dstates, dinitial = _scan_back(q_in.mT @ do, decay, grads[1], chunks)
        dv = torch.baddbmm(a.mT @ do, k_out, dstates)
        dq, dk, dg = _decay_backward(
            q, k, a, q_in, k_out, decay, saved,
            da=do @ v.mT,
            dq_in=do @ states.mT,
            dk_out=v @ dstates.mT,
            ddecay=(states * dstates).sum(-1, keepdim=True),
        )
        dq.mul_(ctx.scale)
        out = [
            None if y is None else from_chunks(y.unflatten(0, (-1, ctx.num_heads)), chunks, dtype)
            for y, dtype in zip((dq, dk, dv, dg), ctx.dtypes, strict=True)
        ]
        return *out, None, dinitial, None


def _scan(
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
    """From the gradients of the states before each chunk, those of the states after each chunk and of the initial ones."""
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


def _decay_forward(q: Tensor, k: Tensor, g: Tensor | None) -> tuple[Any, ...]:
    """Scores [P, C, C], queries decayed from the chunk's start, keys decayed to its end, its decay, what to save."""
    if g is None:
        return (q @ k.mT).tril_(), q, k, None, ()
    if g.shape[-1] == 1:
        return _head_forward(q, k, g)
    return _channel_forward(q, k, g)


def _decay_backward(q: Tensor, k: Tensor, a, q_in, k_out, decay, saved, *, da, dq_in, dk_out, ddecay):
    if decay is None:
        da = da.tril()
        return dq_in.baddbmm_(da, k), dk_out.baddbmm_(da.mT, q), None
    if decay.shape[1] == 1:
        return _head_backward(q, k, a, q_in, k_out, decay, saved, da, dq_in, dk_out, ddecay)
    return _channel_backward(q, k, q_in, k_out, decay, saved, da, dq_in, dk_out, ddecay)


def _head_forward(q: Tensor, k: Tensor, g: Tensor):
    # [P, C] sums in double: differences of large sums keep the precision of fp32
    total = g.squeeze(-1).double().clamp_min(-100.0).cumsum(-1)
    decays = (total.unsqueeze(-1) - total.unsqueeze(-2)).float().exp_().tril_()
    a = (q @ k.mT).mul_(decays)
    from_start = total.float().exp().unsqueeze(-1)
    to_end = (total[:, -1:] - total).float().exp().unsqueeze(-1)
    return a, q * from_start, k * to_end, from_start[:, -1:], (decays, from_start, to_end)


def _head_backward(q, k, a, q_in, k_out, decay, saved, da, dq_in, dk_out, ddecay):
    decays, from_start, to_end = saved
    da = da * decays
    weighted = (da * (q @ k.mT)).tril_(-1)
    out = (k_out * dk_out).sum(-1)
    dtotal = weighted.sum(-1) - weighted.sum(-2) + (q_in * dq_in).sum(-1) - out
    end = out.sum(-1, keepdim=True) + decay.flatten(1) * ddecay.sum(1)
    dg = dtotal.flip(-1).cumsum(-1).flip(-1) + end
    dq = torch.baddbmm(dq_in * from_start, da, k)
    dk = torch.baddbmm(dk_out * to_end, da.mT, q)
    return dq, dk, dg.unsqueeze(-1)


def _blocks(a: Tensor, size: int, *, diagonal: bool) -> Tensor:
    """View [P, n, size, size] of scores [P, C, C]: the diagonal blocks, or those just below them in pairs of blocks."""
    num, width = a.shape[0], a.shape[-1]
    step = size if diagonal else 2 * size
    strides = (width * width, step * (width + 1), width, 1)
    offset = a.storage_offset() + (0 if diagonal else size * width)
    return a.as_strided((num, width // step, size, size), strides, offset)


def _channel_forward(q: Tensor, k: Tensor, g: Tensor):
    num, width, channels = q.shape
    split = (num * width // BLOCK, BLOCK, channels)
    sums = g.clamp_min(STRONGEST).view(split).cumsum(1)
    middle = (sums - sums[:, BLOCK // 2 - 1 : BLOCK // 2]).exp_()
    from_start = sums.exp()
    to_end = (sums[:, -1:] - sums).exp_()
    q_mid, k_mid = q.view(split) * middle, k.view(split) / middle
    a = q.new_zeros(num, width, width)
    scores = (q_mid @ k_mid.mT).tril_()
    _blocks(a, BLOCK, diagonal=True).copy_(scores.view(num, -1, BLOCK, BLOCK))
    q_in, k_out, total = q.view(split) * from_start, k.view(split) * to_end, from_start[:, -1:]
    saved = [middle, from_start, to_end, q_mid, k_mid]
    size = BLOCK
    while size < width:
        pairs = (-1, 2, size, channels)
        q_right, k_left = q_in.view(pairs)[:, 1], k_out.view(pairs)[:, 0]
        left, right = total.view(-1, 2, 1, channels).unbind(1)
        saved += [q_right.clone(), k_left.clone(), left, right]
        scores = q_right @ k_left.mT
        _blocks(a, size, diagonal=False).copy_(scores.view(num, -1, size, size))
        q_right.mul_(left)
        k_left.mul_(right)
        total = left * right
        size *= 2
    q_in, k_out = q_in.view(q.shape), k_out.view(k.shape)
    return a, q_in, k_out, total.mT, saved


def _channel_backward(q, k, q_in, k_out, decay, saved, da, dq_in, dk_out, ddecay):
    num, width, channels = q.shape
    middle, from_start, to_end, q_mid, k_mid, *levels = saved
    # what moves the sum of the whole chunk: keys that reach its end, and the state itself
    dtotal = (k_out * dk_out).sum(1, keepdim=True) + (decay * ddecay).mT
    size = width
    while levels:
        size //= 2
        q_right, k_left, left, right = levels[-4:]
        del levels[-4:]
        pairs = (-1, 2, size, channels)
        block = _blocks(da, size, diagonal=False).reshape(-1, size, size)
        dq_in.view(pairs)[:, 1].mul_(left).baddbmm_(block, k_left)
        dk_out.view(pairs)[:, 0].mul_(right).baddbmm_(block.mT, q_right)
    split = (num * width // BLOCK, BLOCK, channels)
    block = _blocks(da, BLOCK, diagonal=True).reshape(-1, BLOCK, BLOCK).tril(-1)
    dq = (dq_in.view(split) * from_start).addcmul_(block @ k_mid, middle).view(q.shape)
    dk = (dk_out.view(split) * to_end).addcdiv_(block.mT @ q_mid, middle).view(k.shape)
    # a token's score with itself holds no decay: it joins after the gradient of the gates
    dsum = q * dq - k * dk
    dg = dsum.flip(1).cumsum(1).flip(1) + dtotal
    own = da.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    return dq.addcmul_(own, k), dk.addcmul_(own, q), dg
