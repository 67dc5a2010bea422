"""Intra-chunk part of `linear_attention`: scores, decays to both ends of a chunk, their gradients.

Scores are A_ij = sum_d q_id k_jd exp(G_id - G_jd) for i >= j, G the cumulative log decays g of the
chunk (GLA, arXiv 2312.06635, section 4). No exponent is ever large enough to overflow:

* without decay, and with decays per head, exp(G_i - G_j) <= 1 is formed for every pair;
* decays per channel, gentle: as `intra_chunk` says;
* decays per channel, steep: the decay between two tokens is the product of two decays <= 1, from
  the later token back to a boundary and from there to the earlier one. Boundaries halve the chunk
  until blocks of 8 tokens remain, whose middle is at most 4 steps of `MIN_LOG_DECAY` away.

The gradient of g follows from those of q and k: the query of token i holds exp(G_i), its key
exp(-G_i). Where decays are steep, sums that would cancel are left out (the score of a token with
itself holds no decay).

Shape letters: P chunks of all heads, C tokens of a chunk, K key width.
"""

from functools import lru_cache

import torch
from torch import Tensor

from flame_accel.kernels.recurrence.intra_chunk import (
    IntraChunkTermsWithBackward,
    QueryKeyDecayGradients,
    compute_gentle_and_steep_chunks,
    exclusive_cumsum_tokens,
    reverse_cumsum_tokens,
)

MIN_LOG_DECAY = -20.0
"""Log decays of steep chunks are clamped here: fp32 does not keep exp(-20) = 2e-9 of a state."""
BLOCK_SIZE = 8
"""Tokens of a steep chunk whose decays are taken relative to the middle of their block."""


def compute_decayed_scores_queries_keys(
    q: Tensor, k: Tensor, g: Tensor | None
) -> IntraChunkTermsWithBackward:
    """Chooses by the log decays `g`: none, [P, C, 1] per head, or [P, C, K] per channel.

    Queries and keys are [P, C, K] fp32.
    """
    if g is None:
        scores = (q @ k.mT).mul_(_causal_mask(q.shape[1], q.device))
        return IntraChunkTermsWithBackward(
            scores, q, k, None, _backward_without_decay_overwriting_grads, [q, k]
        )
    if g.shape[-1] == 1:
        return _compute_with_head_decay(q, k, g)
    return compute_gentle_and_steep_chunks(
        q, k, g, _compute_with_gentle_decay, compute_with_steep_decay
    )


@lru_cache(maxsize=8)
def _causal_mask(chunk_size: int, device: torch.device) -> Tensor:
    """[C, C], 1 where the key is not later than the query, else 0."""
    return torch.ones(chunk_size, chunk_size, device=device).tril_()


def _backward_without_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: None,
) -> QueryKeyDecayGradients:
    q, k = saved
    dscores = dscores * _causal_mask(q.shape[1], q.device)
    return QueryKeyDecayGradients(
        dq_from_start.baddbmm_(dscores, k), dk_to_end.baddbmm_(dscores.mT, q), None
    )


def _compute_with_head_decay(q: Tensor, k: Tensor, g: Tensor) -> IntraChunkTermsWithBackward:
    """Forms the decay of every pair of tokens; `g` [P, C, 1]."""
    # sums in double, so that differences of large sums keep the precision of fp32; exp(-100) is 0
    cumulative_g = g.double().clamp_min(-100.0).cumsum(1)
    pair_decays = (cumulative_g - cumulative_g.mT).float().exp_().tril_()
    products = q @ k.mT
    from_start = cumulative_g.float().exp_()
    to_end = (cumulative_g[:, -1:] - cumulative_g).float().exp_()
    q_from_start, k_to_end = q * from_start, k * to_end
    saved = [q, k, products, pair_decays, from_start, to_end, q_from_start, k_to_end]
    return IntraChunkTermsWithBackward(
        products * pair_decays,
        q_from_start,
        k_to_end,
        from_start[:, -1:],
        _backward_with_head_decay_overwriting_grads,
        saved,
    )


def _backward_with_head_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: Tensor,
) -> QueryKeyDecayGradients:
    q, k, products, pair_decays, from_start, to_end, q_from_start, k_to_end = saved
    dproducts = dscores.mul_(pair_decays)
    dlog_pair_decays = (dproducts * products).tril_(-1)
    dlog_from_start = (q_from_start * dq_from_start).sum(-1, keepdim=True)
    dcumulative_g = dlog_from_start + dlog_pair_decays.sum(-1, keepdim=True)
    dg = reverse_cumsum_tokens(dcumulative_g - dlog_pair_decays.sum(-2).unsqueeze(-1))
    dlog_to_end = (k_to_end * dk_to_end).sum(-1, keepdim=True)
    dg += exclusive_cumsum_tokens(dlog_to_end) + dlog_chunk_decay.sum(-1)[:, None, None]
    dq = dq_from_start.mul_(from_start).baddbmm_(dproducts, k)
    return QueryKeyDecayGradients(dq, dk_to_end.mul_(to_end).baddbmm_(dproducts.mT, q), dg)


def _compute_with_gentle_decay(
    q: Tensor, k: Tensor, cumulative_g: Tensor
) -> IntraChunkTermsWithBackward:
    """Takes all decays relative to the middle of the chunk; `cumulative_g` [P, C, K]."""
    half = q.shape[1] // 2
    middle, last = cumulative_g[:, half - 1 : half], cumulative_g[:, -1:]
    from_middle = (cumulative_g - middle).exp_()
    q_from_middle, k_to_middle = q * from_middle, k / from_middle
    scores = (q_from_middle @ k_to_middle.mT).mul_(_causal_mask(q.shape[1], q.device))
    start_to_middle, middle_to_end = middle.exp(), (last - middle).exp_()
    q_from_start, k_to_end = q_from_middle * start_to_middle, k_to_middle * middle_to_end
    saved = [q_from_middle, k_to_middle, from_middle, start_to_middle, middle_to_end, k_to_end]
    return IntraChunkTermsWithBackward(
        scores,
        q_from_start,
        k_to_end,
        last.exp().mT,
        _backward_with_gentle_decay_overwriting_grads,
        saved,
    )


def _backward_with_gentle_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: Tensor,
) -> QueryKeyDecayGradients:
    q_from_middle, k_to_middle, from_middle, start_to_middle, middle_to_end, k_to_end = saved
    dscores = dscores.mul_(_causal_mask(q_from_middle.shape[1], q_from_middle.device))
    dlast = (k_to_end * dk_to_end).sum(1, keepdim=True) + dlog_chunk_decay.unsqueeze(1)
    # first with respect to q_from_middle and k_to_middle, then to q and k
    dq = dq_from_start.mul_(start_to_middle).baddbmm_(dscores, k_to_middle)
    dk = dk_to_end.mul_(middle_to_end).baddbmm_(dscores.mT, q_from_middle)
    dg = reverse_cumsum_tokens((q_from_middle * dq).addcmul_(k_to_middle, dk, value=-1)).add_(dlast)
    return QueryKeyDecayGradients(dq.mul_(from_middle), dk.div_(from_middle), dg)


def _square_blocks_view(scores: Tensor, size: int, *, diagonal: bool) -> Tensor:
    """View [P, n, size, size] of square blocks of the scores [P, C, C].

    They are those on the diagonal, or of each pair of blocks the one below the diagonal.
    """
    num, width = scores.shape[0], scores.shape[-1]
    step = size if diagonal else 2 * size
    strides = (width * width, step * (width + 1), width, 1)
    return scores.as_strided(
        (num, width // step, size, size), strides, 0 if diagonal else size * width
    )


def compute_with_steep_decay(q: Tensor, k: Tensor, g: Tensor) -> IntraChunkTermsWithBackward:
    """Halves the chunk down to blocks of `BLOCK_SIZE` tokens; `g` [P, C, K]."""
    num, chunk_size, width = q.shape
    in_blocks = (-1, BLOCK_SIZE, width)
    cumulative_g = g.clamp_min(MIN_LOG_DECAY).view(in_blocks).cumsum(1)
    from_middle = (cumulative_g - cumulative_g[:, BLOCK_SIZE // 2 - 1 : BLOCK_SIZE // 2]).exp_()
    # decays from the start of a token's block and to its end; blocks double in each round below
    from_start = cumulative_g.exp()
    to_end = (cumulative_g[:, -1:] - cumulative_g).exp_()
    q_from_middle, k_to_middle = q.view(in_blocks) * from_middle, k.view(in_blocks) / from_middle
    scores = q.new_zeros(num, chunk_size, chunk_size)
    block = (q_from_middle @ k_to_middle.mT).tril_()
    block = block.view(num, -1, BLOCK_SIZE, BLOCK_SIZE)
    _square_blocks_view(scores, BLOCK_SIZE, diagonal=True).copy_(block)
    saved = [q, k, from_middle, from_start.clone(), to_end.clone(), q_from_middle, k_to_middle]
    block_decay, size = from_start[:, -1:].clone(), BLOCK_SIZE
    while size < chunk_size:
        pairs = (-1, 2, size, width)
        right_from_start, left_to_end = from_start.view(pairs)[:, 1], to_end.view(pairs)[:, 0]
        q_right, k_left = q.view(pairs)[:, 1] * right_from_start, k.view(pairs)[:, 0] * left_to_end
        block = (q_right @ k_left.mT).view(num, -1, size, size)
        _square_blocks_view(scores, size, diagonal=False).copy_(block)
        left_decay, right_decay = block_decay.view(-1, 2, 1, width).unbind(1)
        saved += [q_right, k_left, left_decay, right_decay]
        right_from_start.mul_(left_decay)
        left_to_end.mul_(right_decay)
        block_decay, size = left_decay * right_decay, 2 * size
    from_start, to_end = from_start.view(q.shape), to_end.view(k.shape)
    q_from_start, k_to_end = q * from_start, k * to_end
    saved = [from_start, to_end, q_from_start, k_to_end, *saved]
    return IntraChunkTermsWithBackward(
        scores,
        q_from_start,
        k_to_end,
        block_decay.mT,
        _backward_with_steep_decay_overwriting_grads,
        saved,
    )


def _backward_with_steep_decay_overwriting_grads(
    saved: list[Tensor],
    dscores: Tensor,
    dq_from_start: Tensor,
    dk_to_end: Tensor,
    dlog_chunk_decay: Tensor,
) -> QueryKeyDecayGradients:
    from_start, to_end, q_from_start, k_to_end, q, k, *saved = saved
    from_middle, from_block_start, to_block_end, q_from_middle, k_to_middle, *rounds = saved
    size, width = q.shape[1:]
    dscores = dscores.contiguous()
    # gradients from the scores, of queries and keys decayed to the edges of ever smaller blocks
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    while rounds:
        size //= 2
        q_right, k_left, left_decay, right_decay = rounds[-4:]
        del rounds[-4:]
        pairs = (-1, 2, size, width)
        block = _square_blocks_view(dscores, size, diagonal=False).reshape(-1, size, size)
        dq.view(pairs)[:, 1].mul_(left_decay).add_(block @ k_left)
        dk.view(pairs)[:, 0].mul_(right_decay).add_(block.mT @ q_right)
    in_blocks = (-1, BLOCK_SIZE, width)
    block = _square_blocks_view(dscores, BLOCK_SIZE, diagonal=True)
    block = block.reshape(-1, BLOCK_SIZE, BLOCK_SIZE).tril(-1)
    dq = dq.view(in_blocks).mul_(from_block_start)
    dq = dq.addcmul_(block @ k_to_middle, from_middle).view(q.shape)
    dk = dk.view(in_blocks).mul_(to_block_end)
    dk = dk.addcdiv_(block.mT @ q_from_middle, from_middle).view(k.shape)
    dg = reverse_cumsum_tokens(q * dq - k * dk + q_from_start * dq_from_start)
    dg += exclusive_cumsum_tokens(k_to_end * dk_to_end) + dlog_chunk_decay.unsqueeze(1)
    dscores_of_itself = dscores.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    dq.addcmul_(dq_from_start, from_start).addcmul_(dscores_of_itself, k)
    dk.addcmul_(dk_to_end, to_end).addcmul_(dscores_of_itself, q)
    return QueryKeyDecayGradients(dq, dk, dg)
