"""The generalized delta rule in chunks, with a hand-written backward pass.

With queries q_t, keys k_t and erase keys a_t [K], values v_t [V] and log decays g_t (per channel
[K], per head, or none):

    S_t = D_t S_{t-1} + k_t (v_t - a_t^T D_t S_{t-1})^T,    o_t = S_t^T q_t,    D_t = diag(exp(g_t))

(Yang et al., DeltaNet, arXiv 2406.06484; Gated DeltaNet, arXiv 2412.06464; KDA, arXiv 2510.26692).
What is erased may be written with keys b_t of its own instead of k_t, and a_t may read S_{t-1}
before it decays (RWKV-7, arXiv 2503.14456). Within a chunk the new values v_t - a_t^T D_t S_{t-1}
depend on each other through a triangular system, with scores from `delta_rule_intra_chunk`; the
inter-chunk scan carries the state, here. fla's names and signatures are in `delta_rule`, `kda` and
`dplr`.

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width, C tokens of a
chunk, P chunks of all heads, R kinds of keys: 1, or 2 if there are keys b.
"""

from typing import Any, NamedTuple

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
from flame_accel.kernels.recurrence.delta_rule_intra_chunk import (
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
def generalized_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    erase_keys: Tensor,
    erase_write_keys: Tensor | None = None,
    g: Tensor | None = None,
    *,
    scale: float,
    erase_before_decay: bool = False,
    initial_state: Tensor | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndFinalStates:
    """Outputs [B, T, H, V] in the dtype of `v`, and final states in fp32.

    States are [N, H, K, V], or [N, H, V, K] if `state_v_first`.

    Args:
        q: [B, T, H, K].
        k: keys that values are written with, [B, T, H, K].
        v: [B, T, H, V].
        erase_keys: a, which read what is to be erased, times their strength, [B, T, H, K].
        erase_write_keys: b, keys that what was read is subtracted with; `k` if None. [B, T, H, K].
        g: log decays, [B, T, H, K] per channel, [B, T, H, 1] per head, or None.
        scale: factor of the outputs.
        erase_before_decay: whether `erase_keys` read the state before the decay of its own token.
        initial_state: like the final states; zeros if None.
        state_v_first: the layout of the states.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    state = fp32_key_first_state_or_zeros(
        initial_state, q, v, state_v_first=state_v_first, cu_seqlens=cu_seqlens
    )
    q = q.float() * scale
    if every_sequence_has_one_token(q.shape[1], cu_seqlens):
        o, state = _recurrent_step_of_one_token(
            q, k, v, erase_keys, erase_write_keys, g, erase_before_decay, state
        )
    else:
        layout = build_chunk_layout(q.shape[0], q.shape[1], cu_seqlens, CHUNK_SIZE)
        o, state = _ChunkedDeltaRule.apply(
            q, k, v, erase_keys, erase_write_keys, g, erase_before_decay, state, layout
        )
    return o, state.mT.contiguous() if state_v_first else state


def _recurrent_step_of_one_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    erase_keys: Tensor,
    erase_write_keys: Tensor | None,
    g: Tensor | None,
    erase_before_decay: bool,
    state: Tensor,
) -> OutputsAndFinalStates:
    """The recurrence itself, for one token of every sequence; the state is [N, H, K, V]."""

    def to_columns(x: Tensor) -> Tensor:
        """[B, T, H, K] -> [N, H, K, 1]."""
        return x.float().reshape(-1, *x.shape[2:]).unsqueeze(-1)

    decayed = state if g is None else state * to_columns(g).exp()
    erased = to_columns(erase_keys).mT @ (state if erase_before_decay else decayed)
    if erase_write_keys is None:
        state = decayed + to_columns(k) * (to_columns(v).mT - erased)
    else:
        state = decayed + to_columns(k) * to_columns(v).mT - to_columns(erase_write_keys) * erased
    o = to_columns(q).mT @ state
    return o.reshape(v.shape).to(v.dtype), state


class _ChunkedDeltaRule(torch.autograd.Function):
    """The chunked form; the state is [N, H, K, V] fp32.

    With T = (I + L)^-1 (`inverse`), L the scores of erase keys with the keys before them, the new
    values of a chunk that starts from the state S are `v_new` = u - w S, where u = T v and w = T a
    (the UT transform, arXiv 2406.06484, section 3.2). With keys b, u is -T times what erase keys
    read of the values of the chunk, and [v_new; v] are the values of the keys [b; k].
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
        erase_before_decay: bool,
        initial_state: Tensor,
        layout: ChunkLayout,
    ) -> tuple[Tensor, Tensor]:
        queries = _to_stacked_chunks((q, a), layout)
        keys = _to_stacked_chunks((k,) if b is None else (b, k), layout)
        gc = None if g is None else to_padded_fp32_chunk_batch(g, layout).flatten(0, 1)
        intra = compute_decayed_scores_queries_keys(queries, keys, gc, erase_before_decay)
        scores, q_from_start, k_to_end, chunk_decay = intra[:4]
        size = layout.chunk_size
        inverse = _invert_identity_plus_lower(scores[:, size:, :size])
        values = vc = to_padded_fp32_chunk_batch(v, layout).flatten(0, 1)
        if b is not None:
            values = torch.cat((scores[:, size:, size:] @ vc.neg(), vc), 1)
        u = inverse @ values[:, :size]
        w = inverse @ q_from_start[:, size:]
        if b is None:
            values = torch.empty_like(vc)
        states, final_state = _inter_chunk_scan(
            u, w, k_to_end, chunk_decay, initial_state, layout, out_values=values
        )
        o = (scores[:, :size] @ values).baddbmm_(q_from_start[:, :size], states)
        ctx.layout, ctx.num_heads, ctx.intra_chunk_backward = layout, q.shape[2], intra.backward
        ctx.dtypes = [None if x is None else x.dtype for x in (q, k, v, a, b, g)]
        ctx.save_for_backward(inverse, w, values, states, *intra[:4], *intra.saved)
        return from_padded_chunk_batch(
            o.unflatten(0, (-1, ctx.num_heads)), layout, v.dtype
        ), final_state

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout: ChunkLayout = ctx.layout
        inverse, w, values, states, *intra = ctx.saved_tensors
        scores, q_from_start, k_to_end, chunk_decay, *saved = intra
        size = layout.chunk_size
        do = to_padded_fp32_chunk_batch(grads[0], layout).flatten(0, 1)
        dv_new = scores[:, :size, :size].mT @ do
        dstates = q_from_start[:, :size].mT @ do
        dstates_after, dinitial_state = _inter_chunk_scan_backward(
            dstates, w, k_to_end, chunk_decay, grads[1], layout, dv_new_inout=dv_new
        )
        dv = inverse.mT @ dv_new
        # of what [q; a] read: outputs, and what is subtracted from the values
        dreads = torch.cat((do, dv.neg()), 1)
        dlog_chunk_decay = None
        if chunk_decay is not None:
            dlog_chunk_decay = (states * dstates_after).sum(-1) * chunk_decay.squeeze(-1)
        if values.shape[1] > size:
            dv = (scores[:, :, size:].mT @ dreads).baddbmm_(k_to_end[:, size:], dstates_after)
        dqueries, dkeys, dg = ctx.intra_chunk_backward(
            saved,
            dreads @ values.mT,
            dreads @ states.mT,
            values @ dstates_after.mT,
            dlog_chunk_decay,
        )
        dq, da = dqueries.unflatten(1, (2, size)).unbind(1)
        *db, dk = dkeys.unflatten(1, (-1, size)).unbind(1)
        dqkvabg = [
            None
            if x is None
            else from_padded_chunk_batch(x.unflatten(0, (-1, ctx.num_heads)), layout, dtype)
            for x, dtype in zip(
                (dq, dk, dv, da, db[0] if db else None, dg), ctx.dtypes, strict=True
            )
        ]
        return *dqkvabg, None, dinitial_state, None


def _to_stacked_chunks(kinds: tuple[Tensor, ...], layout: ChunkLayout) -> Tensor:
    """[B, T, H, K] of each kind -> [P, C of the first kind, C of the second, ...; K]."""
    return torch.cat([to_padded_fp32_chunk_batch(x, layout) for x in kinds], 2).flatten(0, 1)


def _invert_identity_plus_lower(lower: Tensor) -> Tensor:
    """(I + lower)^-1 of strictly lower triangular matrices [P, C, C]."""
    eye = torch.eye(lower.shape[-1], device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)


def _inter_chunk_scan(
    u: Tensor,
    w: Tensor,
    k_to_end: Tensor,
    chunk_decay: Tensor | None,
    initial_state: Tensor,
    layout: ChunkLayout,
    *,
    out_values: Tensor,
) -> ScannedStates:
    """v_new = u - w S and S' = chunk_decay * S + k_to_end^T [v_new; v], from chunk to chunk.

    Args:
        u: [P, C, V].
        w: [P, C, K].
        k_to_end: [P, R C, K].
        chunk_decay: [P, K or 1, 1], or None.
        initial_state: [N, H, K, V].
        layout: the chunks.
        out_values: [P, R C, V]; its first C tokens are filled in place with v_new.

    Returns:
        States before each chunk [P, K, V], and after the last chunk of each sequence [N, H, K, V].
    """
    num_heads, size = initial_state.shape[1], layout.chunk_size
    carry = sort_states_longest_first(initial_state, layout)
    carry = carry.clone(memory_format=torch.contiguous_format).flatten(0, 1)
    states = u.new_empty(len(u), *carry.shape[1:])
    for first, count in layout.rounds:
        here = slice(first * num_heads, (first + count) * num_heads)
        carried = carry[: count * num_heads]
        states[here] = carried
        torch.baddbmm(u[here], w[here], carried, alpha=-1, out=out_values[here, :size])
        if chunk_decay is not None:
            carried.mul_(chunk_decay[here])
        carried.baddbmm_(k_to_end[here].mT, out_values[here])
    return ScannedStates(states, restore_state_order(carry.unflatten(0, (-1, num_heads)), layout))


class _StateGradients(NamedTuple):
    after_chunks: Tensor
    """[P, K, V]"""
    initial: Tensor
    """[N, H, K, V]"""


def _inter_chunk_scan_backward(
    dstates: Tensor,
    w: Tensor,
    k_to_end: Tensor,
    chunk_decay: Tensor | None,
    dfinal_state: Tensor,
    layout: ChunkLayout,
    *,
    dv_new_inout: Tensor,
) -> _StateGradients:
    """Gradients of the states after each chunk [P, K, V], and of the initial states [N, H, K, V].

    Args:
        dstates: of the states before each chunk, through the outputs of the chunk [P, K, V].
        w: [P, C, K].
        k_to_end: [P, R C, K].
        chunk_decay: [P, K or 1, 1], or None.
        dfinal_state: [N, H, K, V].
        layout: the chunks.
        dv_new_inout: of the new values through the outputs of the chunk [P, C, V]; what reaches
            them through the states is added in place.
    """
    num_heads, size = dfinal_state.shape[1], layout.chunk_size
    carry = sort_states_longest_first(dfinal_state, layout)
    carry = carry.clone(memory_format=torch.contiguous_format).flatten(0, 1)
    dstates_after = torch.empty_like(dstates)
    for first, count in reversed(layout.rounds):
        here = slice(first * num_heads, (first + count) * num_heads)
        carried, dv_new = carry[: count * num_heads], dv_new_inout[here]
        dstates_after[here] = carried
        dv_new.baddbmm_(k_to_end[here, :size], carried)
        if chunk_decay is not None:
            carried.mul_(chunk_decay[here])
        carried.add_(dstates[here]).baddbmm_(w[here].mT, dv_new, alpha=-1)
    dinitial_state = restore_state_order(carry.unflatten(0, (-1, num_heads)), layout)
    return _StateGradients(dstates_after, dinitial_state)
