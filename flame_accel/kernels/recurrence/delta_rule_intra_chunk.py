"""Intra-chunk part of `generalized_delta_rule`: scores, decays to both ends, their gradients.

As `linear_attention_intra_chunk`, for several kinds of queries and keys at once, stacked along the
tokens: queries are [q; a], the queries and the erase keys, and keys are [k] or [b; k]. Queries see
the keys up to their own token, erase keys those before it. The state that an erase key sees has
decayed up to its own token, or, with `erase_before_decay` (RWKV-7, arXiv 2503.14456), up to the one
before. Chunks whose decays per channel are too steep for one reference in the middle go through
`linear_attention_intra_chunk`.

Shape letters: P chunks of all heads, C tokens of a chunk, K key width, R kinds of keys (1 or 2).
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.recurrence.intra_chunk import (
    IntraChunkTermsWithBackward,
    QueryKeyDecayGradients,
    compute_gentle_and_steep_chunks,
    exclusive_cumsum_tokens,
    reverse_cumsum_tokens,
)
from flame_accel.kernels.recurrence.linear_attention_intra_chunk import compute_with_steep_decay


def compute_decayed_scores_queries_keys(
    stacked_queries: Tensor, stacked_keys: Tensor, g: Tensor | None, erase_before_decay: bool
) -> IntraChunkTermsWithBackward:
    """Chooses by the log decays `g`: none, [P, C, 1] per head, or [P, C, K] per channel.

    Queries [q; a] are [P, 2 C, K], keys [P, R C, K].
    """
    if g is None:
        q, k = stacked_queries, stacked_keys
        scores = (q @ k.mT).mul_(_stacked_causal_mask(q.shape[1] // 2, k.shape[1], q.device))
        return IntraChunkTermsWithBackward(
            scores, q, k, None, _backward_without_decay_overwriting_grads, [q, k]
        )
    if g.shape[-1] == 1:
        return _compute_with_head_decay(stacked_queries, stacked_keys, g, erase_before_decay)
    return compute_gentle_and_steep_chunks(
        stacked_queries,
        stacked_keys,
        g,
        partial(_compute_with_gentle_decay, erase_before_decay=erase_before_decay),
        partial(_compute_with_steep_decay, erase_before_decay=erase_before_decay),
    )


@lru_cache(maxsize=8)
def _stacked_causal_mask(chunk_size: int, num_keys: int, device: torch.device) -> Tensor:
    """[2 C, R C], 1 where a query or an erase key sees a key, else 0."""
    ones = torch.ones(chunk_size, chunk_size, device=device)
    return torch.cat((ones.tril(), ones.tril(-1))).repeat(1, num_keys // chunk_size)


@lru_cache(maxsize=8)
def _stacked_decayed_pairs_mask(
    chunk_size: int, num_keys: int, erase_before_decay: bool, device: torch.device
) -> Tensor:
    """[2 C, R C], 1 where a key is seen through a decay: only there `g` has a gradient."""
    ones = torch.ones(chunk_size, chunk_size, device=device)
    erased = ones.tril(-2 if erase_before_decay else -1)
    return torch.cat((ones.tril(-1), erased)).repeat(1, num_keys // chunk_size)


@lru_cache(maxsize=8)
def _cumulative_to_decay_gradient_matrix(
    chunk_size: int, erase_before_decay: bool, device: torch.device
) -> Tensor:
    """[C, 2 C] from gradients of the cumulative log decays that [q; a] see to those of g."""
    ones = torch.ones(chunk_size, chunk_size, device=device)
    return torch.cat((ones.triu(), ones.triu(1 if erase_before_decay else 0)), 1)


def _value_of_previous_token(x: Tensor) -> Tensor:
    """y_t = x_{t-1}, 0 for the first token of the chunk; [..., C, K]."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0))


def _value_of_next_token(x: Tensor) -> Tensor:
    """y_t = x_{t+1}, 0 for the last token of the chunk; [..., C, K]."""
    return F.pad(x[..., 1:, :], (0, 0, 0, 1))


def _scale_tokens_of_each_kind(x: Tensor, factors: Tensor) -> Tensor:
    """[P, n C, K] times [P, 1 or n, C, K or 1], for n kinds of queries or keys."""
    return (x.unflatten(1, (-1, factors.shape[2])) * factors).flatten(1, 2)


def _view_scores_by_kinds(scores: Tensor, chunk_size: int) -> Tensor:
    """View [P, 2, C, R, C] of scores [P, 2 C, R C]."""
    return scores.unflatten(2, (-1, chunk_size)).unflatten(1, (2, chunk_size))


def _backward_without_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: None,
) -> QueryKeyDecayGradients:
    q, k = saved
    dscores.mul_(_stacked_causal_mask(q.shape[1] // 2, k.shape[1], q.device))
    return QueryKeyDecayGradients(
        dq_from_start.baddbmm_(dscores, k), dk_to_end.baddbmm_(dscores.mT, q), None
    )


def _compute_with_head_decay(
    q: Tensor, k: Tensor, g: Tensor, erase_before_decay: bool
) -> IntraChunkTermsWithBackward:
    """Forms the decay of every pair of tokens; `g` [P, C, 1]."""
    # sums in double, so that differences of large sums keep the precision of fp32; exp(-100) is 0
    cumulative_g = g.double().clamp_min(-100.0).cumsum(1).unsqueeze(1)
    seen_by_q = cumulative_g
    if erase_before_decay:
        seen_by_q = torch.cat((cumulative_g, _value_of_previous_token(cumulative_g)), 1)
    pair_decays = (seen_by_q - cumulative_g.mT).clamp_max_(0.0).float().exp_()
    scores = (q @ k.mT).mul_(_stacked_causal_mask(g.shape[1], k.shape[1], q.device))
    _view_scores_by_kinds(scores, g.shape[1]).mul_(pair_decays.unsqueeze(3))
    from_start = seen_by_q.float().exp_()
    to_end = (cumulative_g[:, :, -1:] - cumulative_g).float().exp_()
    q_from_start, k_to_end = (
        _scale_tokens_of_each_kind(q, from_start),
        _scale_tokens_of_each_kind(k, to_end),
    )
    chunk_decay = cumulative_g[:, 0, -1:].float().exp_()
    backward = partial(
        _backward_with_head_decay_overwriting_grads, erase_before_decay=erase_before_decay
    )
    saved = [q, k, scores, pair_decays, from_start, to_end, q_from_start, k_to_end]
    return IntraChunkTermsWithBackward(scores, q_from_start, k_to_end, chunk_decay, backward, saved)


def _backward_with_head_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: Tensor,
    erase_before_decay: bool,
) -> QueryKeyDecayGradients:
    q, k, scores, pair_decays, from_start, to_end, q_from_start, k_to_end = saved
    size, num_keys = pair_decays.shape[-1], k.shape[1]
    dlog_pair_decays = dscores * scores
    dlog_pair_decays.mul_(_stacked_decayed_pairs_mask(size, num_keys, erase_before_decay, q.device))
    dlog_from_start = (q_from_start * dq_from_start).sum(-1, keepdim=True)
    dlog_to_end = (k_to_end * dk_to_end).sum(-1).unflatten(1, (-1, size)).sum(1).unsqueeze(-1)
    dseen_by_q = dlog_from_start + dlog_pair_decays.sum(-1, keepdim=True)
    dg = _cumulative_to_decay_gradient_matrix(size, erase_before_decay, q.device) @ dseen_by_q
    dg -= reverse_cumsum_tokens(
        dlog_pair_decays.sum(1).unflatten(1, (-1, size)).sum(1).unsqueeze(-1)
    )
    dg += exclusive_cumsum_tokens(dlog_to_end) + dlog_chunk_decay.sum(-1)[:, None, None]
    dscores.mul_(_stacked_causal_mask(size, num_keys, q.device))
    _view_scores_by_kinds(dscores, size).mul_(pair_decays.unsqueeze(3))
    dq = _scale_tokens_of_each_kind(dq_from_start, from_start).baddbmm_(dscores, k)
    return QueryKeyDecayGradients(
        dq, _scale_tokens_of_each_kind(dk_to_end, to_end).baddbmm_(dscores.mT, q), dg
    )


def _compute_with_gentle_decay(
    q: Tensor, k: Tensor, cumulative_g: Tensor, erase_before_decay: bool
) -> IntraChunkTermsWithBackward:
    """Takes all decays relative to the middle of the chunk; `cumulative_g` [P, C, K]."""
    size = cumulative_g.shape[1]
    middle, last = cumulative_g[:, size // 2 - 1 : size // 2], cumulative_g[:, -1:]
    from_middle = (cumulative_g - middle).exp_().unsqueeze(1)
    q_factors = from_middle
    if erase_before_decay:
        first = middle.neg().exp_().unsqueeze(1)
        a_factors = torch.cat((first, from_middle[:, :, :-1]), 2)
        q_factors = torch.cat((from_middle, a_factors), 1)
    q_from_middle = _scale_tokens_of_each_kind(q, q_factors)
    k_to_middle = _scale_tokens_of_each_kind(k, from_middle.reciprocal())
    scores = (q_from_middle @ k_to_middle.mT).mul_(_stacked_causal_mask(size, k.shape[1], q.device))
    start_to_middle, middle_to_end = middle.exp(), (last - middle).exp_()
    k_to_end = k_to_middle * middle_to_end
    saved = [
        q_from_middle, k_to_middle, from_middle, q_factors, start_to_middle, middle_to_end, k_to_end
    ]  # fmt: skip
    backward = partial(
        _backward_with_gentle_decay_overwriting_grads, erase_before_decay=erase_before_decay
    )
    return IntraChunkTermsWithBackward(
        scores, q_from_middle * start_to_middle, k_to_end, last.exp().mT, backward, saved
    )


def _backward_with_gentle_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: Tensor,
    erase_before_decay: bool,
) -> QueryKeyDecayGradients:
    q_from_middle, k_to_middle, from_middle, q_factors, *saved = saved
    start_to_middle, middle_to_end, k_to_end = saved
    size = from_middle.shape[2]
    dscores.mul_(_stacked_causal_mask(size, k_to_middle.shape[1], q_from_middle.device))
    dlast = (k_to_end * dk_to_end).sum(1, keepdim=True) + dlog_chunk_decay.unsqueeze(1)
    # first with respect to q_from_middle and k_to_middle, then to q and k
    dq = dq_from_start.mul_(start_to_middle).baddbmm_(dscores, k_to_middle)
    dk = dk_to_end.mul_(middle_to_end).baddbmm_(dscores.mT, q_from_middle)
    dg = _cumulative_to_decay_gradient_matrix(size, erase_before_decay, dq.device) @ (
        q_from_middle * dq
    )
    dg -= reverse_cumsum_tokens((k_to_middle * dk).unflatten(1, (-1, size)).sum(1))
    dq, dk = (
        _scale_tokens_of_each_kind(dq, q_factors),
        _scale_tokens_of_each_kind(dk, from_middle.reciprocal()),
    )
    return QueryKeyDecayGradients(dq, dk, dg.add_(dlast))


def _compute_with_steep_decay(
    q: Tensor, k: Tensor, g: Tensor, erase_before_decay: bool
) -> IntraChunkTermsWithBackward:
    """Every kind of query with every kind of key, as `linear_attention_intra_chunk` sees them.

    What a token sees before its decay is what the token before sees: such erase keys move up.
    """
    num, size, width = g.shape
    q, k = q.view(num, 2, 1, size, width), k.view(num, 1, -1, size, width)
    kinds = (num, 2, k.shape[2], size, width)
    first_a = q[:, 1, 0, :1]
    if erase_before_decay:
        q = torch.stack((q[:, 0], _value_of_next_token(q[:, 1])), 1)
    g = g.view(num, 1, 1, size, width)
    # one chunk alone stays a view after flattening, of the same memory for every kind
    expanded = (x.expand(kinds).flatten(0, 2).contiguous() for x in (q, k, g))
    pairs = compute_with_steep_decay(*expanded)
    scores, q_from_start, k_to_end, chunk_decay = (
        x.unflatten(0, kinds[:3]) for x in pairs[:4] if x is not None
    )
    scores, q_from_start = scores.transpose(2, 3).flatten(3), q_from_start[:, :, 0]
    if erase_before_decay:
        scores = torch.stack((scores[:, 0], _value_of_previous_token(scores[:, 1])), 1)
        a_from_start = torch.cat((first_a, q_from_start[:, 1, :-1]), 1)
        q_from_start = torch.stack((q_from_start[:, 0], a_from_start), 1)
    backward = partial(
        _backward_with_steep_decay_overwriting_grads,
        pairs_backward=pairs.backward,
        erase_before_decay=erase_before_decay,
    )
    return IntraChunkTermsWithBackward(
        scores.flatten(1, 2).mul_(_stacked_causal_mask(size, scores.shape[-1], g.device)),
        q_from_start.flatten(1, 2),
        k_to_end[:, 0].flatten(1, 2),
        chunk_decay[:, 0, 0],
        backward,
        pairs.saved,
    )


def _backward_with_steep_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: Tensor,
    pairs_backward: Callable[..., QueryKeyDecayGradients],
    erase_before_decay: bool,
) -> QueryKeyDecayGradients:
    size = dscores.shape[1] // 2
    dscores.mul_(_stacked_causal_mask(size, dscores.shape[2], dscores.device))
    dscores, dq_in = (x.unflatten(1, (2, size)) for x in (dscores, dq_from_start))
    dfirst_a = dq_in[:, 1, :1]
    if erase_before_decay:
        dscores, dq_in = (
            torch.stack((x[:, 0], _value_of_next_token(x[:, 1])), 1) for x in (dscores, dq_in)
        )
    dscores = dscores.unflatten(3, (-1, size)).transpose(2, 3)
    kinds = dscores.shape[:3]
    dq_of_pairs = dq_in.new_zeros(*kinds, *dq_in.shape[2:])
    dk_of_pairs = torch.zeros_like(dq_of_pairs)
    ddecay_of_pairs = dlog_chunk_decay.new_zeros(*kinds, dlog_chunk_decay.shape[-1])
    # what is decayed to the ends is the same for all partners: one of them stands for all
    dq_of_pairs[:, :, 0] = dq_in
    dk_of_pairs[:, 0] = dk_to_end.unflatten(1, (-1, size))
    ddecay_of_pairs[:, 0, 0] = dlog_chunk_decay
    grads = (x.flatten(0, 2) for x in (dscores, dq_of_pairs, dk_of_pairs, ddecay_of_pairs))
    dq, dk, dg = (x.unflatten(0, kinds) for x in pairs_backward(saved, *grads) if x is not None)
    dq, dk = dq.sum(2), dk.sum(1).flatten(1, 2)
    if erase_before_decay:
        dq = torch.stack((dq[:, 0], torch.cat((dfirst_a, dq[:, 1, :-1]), 1)), 1)
    return QueryKeyDecayGradients(dq.flatten(1, 2), dk, dg.sum((1, 2)))
