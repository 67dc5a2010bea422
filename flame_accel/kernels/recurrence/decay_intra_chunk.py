"""What happens inside the chunks of `decay`: scores between tokens, decays to both ends, gradients.

Scores are A_ij = sum_k q_ik k_jk exp(G_ik - G_jk) for i >= j, G the running sum of log decays g. No
exponent is ever large enough to overflow:

* decays per head: exp(G_i - G_j) <= 1 is formed for every pair;
* decays per channel, gentle (GENTLE, GENTLE_STEP): both factors exp(G_i - G_mid) and
  exp(G_mid - G_j) are taken relative to the middle of the chunk, which stay within exp(GENTLE);
* decays per channel, steep: the decay between two tokens is the product of two decays <= 1, from
  the later token back to a boundary and from there to the earlier one. Boundaries halve the chunk
  until blocks of 8 tokens remain, whose middle is at most 4 steps of `STEEPEST` away.

Which of the last two a chunk takes depends on its own decays only. The gradient of g follows from
those of q and k: the query of token i holds exp(G_i), its key exp(-G_i). Where decays are steep,
sums that would cancel are left out (a token's score with itself holds no decay).

Shape letters: P chunks of all heads, C tokens of a chunk, K key channels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GENTLE = 30.0
"""Most that log decays of a gentle chunk sum up to between its middle and its ends."""
GENTLE_STEP = -4.0
"""Least log decay in a gentle chunk: gradients of g below it drown in what cancels around them."""
STEEPEST = -20.0
"""Log decays per channel are cut off here: fp32 does not keep exp(-20) = 2e-9 of a state."""
BLOCK = 8
"""Tokens of a steep chunk whose decays are taken relative to one reference."""

Gradients = tuple[Tensor, Tensor, Tensor | None]


class IntraChunk(NamedTuple):
    """What the recurrence over chunks needs from inside; queries and keys are [P, C, K] fp32."""

    scores: Tensor
    """[P, C, C]"""
    q_in: Tensor
    """Queries, decayed from the chunk's start."""
    k_out: Tensor
    """Keys, decayed to the chunk's end."""
    decay: Tensor | None
    """[P, K or 1, 1] decay of the chunk."""
    backward: Callable[..., Gradients]
    """(saved, dscores, dq_in, dk_out, kept) -> dq, dk, dg; kept [P, K] is that of log(decay)."""
    saved: list[Tensor]


def intra_chunk(q: Tensor, k: Tensor, g: Tensor | None) -> IntraChunk:
    """Chooses by the log decays `g`: none, [P, C, 1] per head, or [P, C, K] per channel."""
    if g is None:
        scores = (q @ k.mT).mul_(_causal(q.shape[1], q.device))
        return IntraChunk(scores, q, k, None, _undecayed_backward, [q, k])
    if g.shape[-1] == 1:
        return _head(q, k, g)
    sums = g.cumsum(1)
    middle = sums[:, q.shape[1] // 2 - 1]
    steep = torch.maximum(-middle, middle - sums[:, -1]).amax(-1) > GENTLE
    steep |= g.amin((1, 2)) < GENTLE_STEP
    if not steep.any():
        return _gentle(q, k, sums)
    if steep.all():
        return _steep(q, k, g)
    return _mixed(q, k, g, sums, steep)


@lru_cache(maxsize=8)
def _causal(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, device=device).tril_()


def _sum_back(x: Tensor) -> Tensor:
    """Sum over the tokens from each one to the end of the chunk."""
    return x.flip(1).cumsum(1).flip(1)


def _sum_before(x: Tensor) -> Tensor:
    """Sum over the tokens before each one."""
    return F.pad(x[:, :-1].cumsum(1), (0, 0, 1, 0))


def _undecayed_backward(
    saved: list[Tensor], dscores: Tensor, dq_in: Tensor, dk_out: Tensor, kept: Tensor | None
) -> Gradients:
    q, k = saved
    dscores = dscores * _causal(q.shape[1], q.device)
    return dq_in.baddbmm_(dscores, k), dk_out.baddbmm_(dscores.mT, q), None


def _head(q: Tensor, k: Tensor, g: Tensor) -> IntraChunk:
    # sums in double, so that differences of large sums keep the precision of fp32; exp(-100) is 0
    sums = g.double().clamp_min(-100.0).cumsum(1)
    decays = (sums - sums.mT).float().exp_().tril_()
    products = q @ k.mT
    from_start, to_end = sums.float().exp_(), (sums[:, -1:] - sums).float().exp_()
    q_in, k_out = q * from_start, k * to_end
    saved = [q, k, products, decays, from_start, to_end, q_in, k_out]
    return IntraChunk(products * decays, q_in, k_out, from_start[:, -1:], _head_backward, saved)


def _head_backward(
    saved: list[Tensor], dscores: Tensor, dq_in: Tensor, dk_out: Tensor, kept: Tensor
) -> Gradients:
    q, k, products, decays, from_start, to_end, q_in, k_out = saved
    dproducts = dscores.mul_(decays)
    between = (dproducts * products).tril_(-1)
    later = (q_in * dq_in).sum(-1, keepdim=True) + between.sum(-1, keepdim=True)
    dg = _sum_back(later - between.sum(-2).unsqueeze(-1))
    dg += _sum_before((k_out * dk_out).sum(-1, keepdim=True)) + kept.sum(-1)[:, None, None]
    dq = dq_in.mul_(from_start).baddbmm_(dproducts, k)
    return dq, dk_out.mul_(to_end).baddbmm_(dproducts.mT, q), dg


def _gentle(q: Tensor, k: Tensor, sums: Tensor) -> IntraChunk:
    half = q.shape[1] // 2
    middle, last = sums[:, half - 1 : half], sums[:, -1:]
    relative = (sums - middle).exp_()
    q_mid, k_mid = q * relative, k / relative
    scores = (q_mid @ k_mid.mT).mul_(_causal(q.shape[1], q.device))
    to_middle, from_middle = middle.exp(), (last - middle).exp_()
    q_in, k_out = q_mid * to_middle, k_mid * from_middle
    saved = [q_mid, k_mid, relative, to_middle, from_middle, k_out]
    return IntraChunk(scores, q_in, k_out, last.exp().mT, _gentle_backward, saved)


def _gentle_backward(
    saved: list[Tensor], dscores: Tensor, dq_in: Tensor, dk_out: Tensor, kept: Tensor
) -> Gradients:
    q_mid, k_mid, relative, to_middle, from_middle, k_out = saved
    dscores = dscores.mul_(_causal(q_mid.shape[1], q_mid.device))
    dend = (k_out * dk_out).sum(1, keepdim=True) + kept.unsqueeze(1)
    dq = dq_in.mul_(to_middle).baddbmm_(dscores, k_mid)
    dk = dk_out.mul_(from_middle).baddbmm_(dscores.mT, q_mid)
    dg = _sum_back((q_mid * dq).addcmul_(k_mid, dk, value=-1)).add_(dend)
    return dq.mul_(relative), dk.div_(relative), dg


def _mixed(q: Tensor, k: Tensor, g: Tensor, sums: Tensor, steep: Tensor) -> IntraChunk:
    """Each chunk its own way."""
    parts = [(~steep).nonzero().flatten(), steep.nonzero().flatten()]
    gentle = _gentle(*(x[parts[0]] for x in (q, k, sums)))
    sharp = _steep(*(x[parts[1]] for x in (q, k, g)))
    whole = [_merge(parts, pair) for pair in zip(gentle[:4], sharp[:4], strict=True)]
    saved = [*parts, *gentle.saved, *sharp.saved]
    return IntraChunk(whole[0], whole[1], whole[2], whole[3], _mixed_backward, saved)


def _mixed_backward(saved: list[Tensor], *grads: Tensor) -> Gradients:
    parts, gentle, sharp = saved[:2], saved[2:8], saved[8:]
    first = _gentle_backward(gentle, *(x[parts[0]] for x in grads))
    second = _steep_backward(sharp, *(x[parts[1]] for x in grads))
    dq, dk, dg = (_merge(parts, pair) for pair in zip(first, second, strict=True))
    return dq, dk, dg


def _merge(parts: list[Tensor], pair: Sequence[Tensor | None]) -> Tensor:
    whole = torch.cat([x for x in pair if x is not None])
    return torch.empty_like(whole).index_copy_(0, torch.cat(parts), whole)


def _blocks(scores: Tensor, size: int, *, diagonal: bool) -> Tensor:
    """View [P, n, size, size] of scores [P, C, C].

    It holds the blocks on the diagonal, or of each pair of blocks the one below the diagonal.
    """
    num, width = scores.shape[0], scores.shape[-1]
    step = size if diagonal else 2 * size
    strides = (width * width, step * (width + 1), width, 1)
    return scores.as_strided(
        (num, width // step, size, size), strides, 0 if diagonal else size * width
    )


def _steep(q: Tensor, k: Tensor, g: Tensor) -> IntraChunk:
    num, width, channels = q.shape
    split = (-1, BLOCK, channels)
    sums = g.clamp_min(STEEPEST).view(split).cumsum(1)
    relative = (sums - sums[:, BLOCK // 2 - 1 : BLOCK // 2]).exp_()
    # decays from the start of a token's block and to its end; blocks double in each round below
    from_start, to_end = sums.exp(), (sums[:, -1:] - sums).exp_()
    q_mid, k_mid = q.view(split) * relative, k.view(split) / relative
    scores = q.new_zeros(num, width, width)
    block = (q_mid @ k_mid.mT).tril_()
    _blocks(scores, BLOCK, diagonal=True).copy_(block.view(num, -1, BLOCK, BLOCK))
    saved = [q, k, relative, from_start.clone(), to_end.clone(), q_mid, k_mid]
    total, size = from_start[:, -1:].clone(), BLOCK
    while size < width:
        pairs = (-1, 2, size, channels)
        later, earlier = from_start.view(pairs)[:, 1], to_end.view(pairs)[:, 0]
        q_right, k_left = q.view(pairs)[:, 1] * later, k.view(pairs)[:, 0] * earlier
        block = (q_right @ k_left.mT).view(num, -1, size, size)
        _blocks(scores, size, diagonal=False).copy_(block)
        left, right = total.view(-1, 2, 1, channels).unbind(1)
        saved += [q_right, k_left, left, right]
        later.mul_(left)
        earlier.mul_(right)
        total, size = left * right, 2 * size
    from_start, to_end = from_start.view(q.shape), to_end.view(k.shape)
    q_in, k_out = q * from_start, k * to_end
    saved = [from_start, to_end, q_in, k_out, *saved]
    return IntraChunk(scores, q_in, k_out, total.mT, _steep_backward, saved)


def _steep_backward(
    saved: list[Tensor], dscores: Tensor, dq_in: Tensor, dk_out: Tensor, kept: Tensor
) -> Gradients:
    from_start, to_end, q_in, k_out, q, k, relative, start, end, q_mid, k_mid, *rounds = saved
    channels, size = q.shape[-1], q.shape[1]
    dscores = dscores.contiguous()
    # gradients within the chunk, of queries and keys decayed to the edges of ever smaller blocks
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    while rounds:
        size //= 2
        q_right, k_left, left, right = rounds[-4:]
        del rounds[-4:]
        pairs = (-1, 2, size, channels)
        block = _blocks(dscores, size, diagonal=False).reshape(-1, size, size)
        dq.view(pairs)[:, 1].mul_(left).add_(block @ k_left)
        dk.view(pairs)[:, 0].mul_(right).add_(block.mT @ q_right)
    split = (-1, BLOCK, channels)
    block = _blocks(dscores, BLOCK, diagonal=True).reshape(-1, BLOCK, BLOCK).tril(-1)
    dq = dq.view(split).mul_(start).addcmul_(block @ k_mid, relative).view(q.shape)
    dk = dk.view(split).mul_(end).addcdiv_(block.mT @ q_mid, relative).view(k.shape)
    dg = _sum_back(q * dq - k * dk + q_in * dq_in)
    dg += _sum_before(k_out * dk_out) + kept.unsqueeze(1)
    own = dscores.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    dq.addcmul_(dq_in, from_start).addcmul_(own, k)
    dk.addcmul_(dk_out, to_end).addcmul_(own, q)
    return dq, dk, dg
