"""What happens inside the chunks of `delta`: scores between tokens, decays to both ends, gradients.

As `decay_intra_chunk`, for several kinds of queries and keys at once: `x` are the queries q and the
erase keys a, one kind after the other, `y` the keys k, or b and k. Queries see the keys up to their
own token, erase keys those before it. The state that an erase key sees has decayed up to its own
token, or up to the one before. No exponent is ever large enough to overflow; chunks whose decays
per channel are too steep for one reference in the middle go through `decay_intra_chunk`.

Shape letters: P chunks of all heads, C tokens of a chunk, K key channels, R kinds of keys.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.recurrence import decay_intra_chunk
from flame_accel.kernels.recurrence.decay_intra_chunk import GENTLE, GENTLE_STEP

Gradients = tuple[Tensor, Tensor, Tensor | None]


class IntraChunk(NamedTuple):
    """What the recurrence over chunks needs from inside; x is [P, 2 C, K], y [P, R C, K]."""

    scores: Tensor
    """[P, 2 C, R C]"""
    x_in: Tensor
    """x, decayed from the chunk's start."""
    y_out: Tensor
    """y, decayed to the chunk's end."""
    decay: Tensor | None
    """[P, K or 1, 1] decay of the chunk."""
    backward: Callable[..., Gradients]
    """(saved, dscores, dx_in, dy_out, kept) -> dx, dy, dg; kept [P, K] is that of log(decay)."""
    saved: list[Tensor]


def intra_chunk(x: Tensor, y: Tensor, g: Tensor | None, before_decay: bool) -> IntraChunk:
    """Chooses by the log decays `g`: none, [P, C, 1] per head, or [P, C, K] per channel."""
    if g is None:
        scores = (x @ y.mT).mul_(_visible(x.shape[1] // 2, y.shape[1], x.device))
        return IntraChunk(scores, x, y, None, _undecayed_backward, [x, y])
    if g.shape[-1] == 1:
        return _head(x, y, g, before_decay)
    sums = g.cumsum(1)
    middle = sums[:, g.shape[1] // 2 - 1]
    steep = torch.maximum(-middle, middle - sums[:, -1]).amax(-1) > GENTLE
    steep |= g.amin((1, 2)) < GENTLE_STEP
    if steep.any():
        return _mixed(x, y, g, sums, steep, before_decay)
    return _gentle(x, y, sums, before_decay)


@lru_cache(maxsize=8)
def _visible(size: int, num_keys: int, device: torch.device) -> Tensor:
    """[2 C, R C], 1 where a token sees a key."""
    ones = torch.ones(size, size, device=device)
    return torch.cat((ones.tril(), ones.tril(-1))).repeat(1, num_keys // size)


def _undecayed_backward(
    saved: list[Tensor], dscores: Tensor, dx_in: Tensor, dy_out: Tensor, kept: Tensor | None
) -> Gradients:
    x, y = saved
    dscores.mul_(_visible(x.shape[1] // 2, y.shape[1], x.device))
    return dx_in.baddbmm_(dscores, y), dy_out.baddbmm_(dscores.mT, x), None


@lru_cache(maxsize=8)
def _apart(size: int, num_keys: int, before_decay: bool, device: torch.device) -> Tensor:
    """[2 C, R C], 1 where a token sees a key through a decay: only there `g` has a gradient."""
    ones = torch.ones(size, size, device=device)
    return torch.cat((ones.tril(-1), ones.tril(-2 if before_decay else -1))).repeat(
        1, num_keys // size
    )


@lru_cache(maxsize=8)
def _summing_back(size: int, before_decay: bool, device: torch.device) -> Tensor:
    """[C, 2 C] from gradients of the sums of log decays that x sees to those of the log decays."""
    ones = torch.ones(size, size, device=device)
    return torch.cat((ones.triu(), ones.triu(1 if before_decay else 0)), 1)


def _earlier(z: Tensor) -> Tensor:
    """What the token before has; zeros for the first."""
    return F.pad(z[..., :-1, :], (0, 0, 1, 0))


def _later(z: Tensor) -> Tensor:
    """What the token after has; zeros for the last."""
    return F.pad(z[..., 1:, :], (0, 0, 0, 1))


def _times(z: Tensor, factors: Tensor) -> Tensor:
    """[P, n C, K] times [P, 1 or n, C, K or 1]."""
    return (z.unflatten(1, (-1, factors.shape[2])) * factors).flatten(1, 2)


def _head(x: Tensor, y: Tensor, g: Tensor, before_decay: bool) -> IntraChunk:
    # sums in double, so that differences of large sums keep the precision of fp32; exp(-100) is 0
    sums = g.double().clamp_min(-100.0).cumsum(1).unsqueeze(1)
    seen = torch.cat((sums, _earlier(sums)), 1) if before_decay else sums
    decays = (seen - sums.mT).clamp_max_(0.0).float().exp_()
    scores = (x @ y.mT).mul_(_visible(g.shape[1], y.shape[1], x.device))
    _pairs(scores, decays).mul_(decays.unsqueeze(3))
    from_start, to_end = seen.float().exp_(), (sums[:, :, -1:] - sums).float().exp_()
    x_in, y_out = _times(x, from_start), _times(y, to_end)
    saved = [x, y, scores, decays, from_start, to_end, x_in, y_out]
    decay = sums[:, 0, -1:].float().exp_()
    return IntraChunk(scores, x_in, y_out, decay, partial(_head_backward, before_decay), saved)


def _pairs(scores: Tensor, decays: Tensor) -> Tensor:
    """View [P, 2, C, R, C] of scores [P, 2 C, R C]."""
    size = decays.shape[-1]
    return scores.unflatten(2, (-1, size)).unflatten(1, (2, size))


def _head_backward(
    before_decay: bool,
    saved: list[Tensor],
    dscores: Tensor,
    dx_in: Tensor,
    dy_out: Tensor,
    kept: Tensor,
) -> Gradients:
    x, y, scores, decays, from_start, to_end, x_in, y_out = saved
    size, num_keys = decays.shape[-1], y.shape[1]
    between = (dscores * scores).mul_(_apart(size, num_keys, before_decay, x.device))
    later = (x_in * dx_in).sum(-1, keepdim=True) + between.sum(-1, keepdim=True)
    ahead = (y_out * dy_out).sum(-1).unflatten(1, (-1, size)).sum(1)
    back = _summing_back(size, before_decay, x.device)
    dg = back @ later
    dg -= _sum_back(between.sum(1).unflatten(1, (-1, size)).sum(1).unsqueeze(-1))
    dg += F.pad(ahead[:, :-1].cumsum(1), (1, 0)).unsqueeze(-1) + kept.sum(-1)[:, None, None]
    dscores.mul_(_visible(size, num_keys, x.device))
    _pairs(dscores, decays).mul_(decays.unsqueeze(3))
    dx = _times(dx_in, from_start).baddbmm_(dscores, y)
    return dx, _times(dy_out, to_end).baddbmm_(dscores.mT, x), dg


def _sum_back(z: Tensor) -> Tensor:
    """Sum over the tokens from each one to the end of the chunk."""
    return z.flip(1).cumsum(1).flip(1)


def _gentle(x: Tensor, y: Tensor, sums: Tensor, before_decay: bool) -> IntraChunk:
    size = sums.shape[1]
    middle, last = sums[:, size // 2 - 1 : size // 2], sums[:, -1:]
    relative = (sums - middle).exp_().unsqueeze(1)
    seen = relative
    if before_decay:
        first = middle.neg().exp_().unsqueeze(1)
        seen = torch.cat((relative, torch.cat((first, relative[:, :, :-1]), 2)), 1)
    x_mid, y_mid = _times(x, seen), _times(y, relative.reciprocal())
    scores = (x_mid @ y_mid.mT).mul_(_visible(size, y.shape[1], x.device))
    to_middle, from_middle = middle.exp(), (last - middle).exp_()
    y_out = y_mid * from_middle
    saved = [x_mid, y_mid, relative, seen, to_middle, from_middle, y_out]
    backward = partial(_gentle_backward, before_decay)
    return IntraChunk(scores, x_mid * to_middle, y_out, last.exp().mT, backward, saved)


def _gentle_backward(
    before_decay: bool,
    saved: list[Tensor],
    dscores: Tensor,
    dx_in: Tensor,
    dy_out: Tensor,
    kept: Tensor,
) -> Gradients:
    x_mid, y_mid, relative, seen, to_middle, from_middle, y_out = saved
    size = relative.shape[2]
    dscores.mul_(_visible(size, y_mid.shape[1], x_mid.device))
    dend = (y_out * dy_out).sum(1, keepdim=True) + kept.unsqueeze(1)
    dx = dx_in.mul_(to_middle).baddbmm_(dscores, y_mid)
    dy = dy_out.mul_(from_middle).baddbmm_(dscores.mT, x_mid)
    dg = _summing_back(size, before_decay, x_mid.device) @ (x_mid * dx)
    dg -= _sum_back((y_mid * dy).unflatten(1, (-1, size)).sum(1))
    return _times(dx, seen), _times(dy, relative.reciprocal()), dg.add_(dend)


def _mixed(
    x: Tensor, y: Tensor, g: Tensor, sums: Tensor, steep: Tensor, before_decay: bool
) -> IntraChunk:
    """Each chunk its own way."""
    parts = [(~steep).nonzero().flatten(), steep.nonzero().flatten()]
    gentle = _gentle(x[parts[0]], y[parts[0]], sums[parts[0]], before_decay)
    sharp = _steep(x[parts[1]], y[parts[1]], g[parts[1]], before_decay)
    whole = [_merge(parts, *pair) for pair in zip(gentle[:4], sharp[:4], strict=True)]
    backward = partial(_mixed_backward, gentle.backward, sharp.backward)
    saved = [*parts, *gentle.saved, *sharp.saved]
    return IntraChunk(whole[0], whole[1], whole[2], whole[3], backward, saved)


def _mixed_backward(
    gentle: Callable[..., Gradients],
    sharp: Callable[..., Gradients],
    saved: list[Tensor],
    *grads: Tensor,
) -> Gradients:
    parts = saved[:2]
    first = gentle(saved[2:9], *(z[parts[0]] for z in grads))
    second = sharp(saved[9:], *(z[parts[1]] for z in grads))
    dx, dy, dg = (_merge(parts, *pair) for pair in zip(first, second, strict=True))
    return dx, dy, dg


def _merge(parts: list[Tensor], first: Tensor | None, second: Tensor | None) -> Tensor:
    whole = torch.cat([z for z in (first, second) if z is not None])
    return torch.empty_like(whole).index_copy_(0, torch.cat(parts), whole)


def _steep(x: Tensor, y: Tensor, g: Tensor, before_decay: bool) -> IntraChunk:
    """Every kind of query with every kind of key, as `decay_intra_chunk` sees them.

    What a token sees before its decay is what the token before sees: such erase keys move up.
    """
    num, size, channels = g.shape
    x, y = x.view(num, 2, 1, size, channels), y.view(num, 1, -1, size, channels)
    kinds = (num, 2, y.shape[2], size, channels)
    first = x[:, 1, 0, :1]
    if before_decay:
        x = torch.stack((x[:, 0], _later(x[:, 1])), 1)
    g = g.view(num, 1, 1, size, channels)
    # one chunk alone stays a view after flattening, of the same memory for every kind
    wide = (z.expand(kinds).flatten(0, 2).contiguous() for z in (x, y, g))
    inner = decay_intra_chunk.intra_chunk(*wide)
    scores, x_in, y_out, decay = (z.unflatten(0, kinds[:3]) for z in inner[:4] if z is not None)
    scores, x_in = scores.transpose(2, 3).flatten(3), x_in[:, :, 0]
    if before_decay:
        scores = torch.stack((scores[:, 0], _earlier(scores[:, 1])), 1)
        x_in = torch.stack((x_in[:, 0], torch.cat((first, x_in[:, 1, :-1]), 1)), 1)
    scores = scores.flatten(1, 2).mul_(_visible(size, scores.shape[-1], g.device))
    backward = partial(_steep_backward, inner.backward, before_decay)
    y_out = y_out[:, 0].flatten(1, 2)
    return IntraChunk(scores, x_in.flatten(1, 2), y_out, decay[:, 0, 0], backward, inner.saved)


def _steep_backward(
    inner: Callable[..., Gradients],
    before_decay: bool,
    saved: list[Tensor],
    dscores: Tensor,
    dx_in: Tensor,
    dy_out: Tensor,
    kept: Tensor,
) -> Gradients:
    size = dscores.shape[1] // 2
    dscores.mul_(_visible(size, dscores.shape[2], dscores.device))
    dscores, dx_in = dscores.unflatten(1, (2, size)), dx_in.unflatten(1, (2, size))
    first = dx_in[:, 1, :1]
    if before_decay:
        dscores, dx_in = (torch.stack((z[:, 0], _later(z[:, 1])), 1) for z in (dscores, dx_in))
    dscores = dscores.unflatten(3, (-1, size)).transpose(2, 3)
    kinds = dscores.shape[:3]
    dq_in = dx_in.new_zeros(*kinds, *dx_in.shape[2:])
    dk_out, dkept = torch.zeros_like(dq_in), kept.new_zeros(*kinds, kept.shape[-1])
    # what is decayed to the ends is the same for all partners: one of them stands for all
    dq_in[:, :, 0], dk_out[:, 0], dkept[:, 0, 0] = dx_in, dy_out.unflatten(1, (-1, size)), kept
    grads = inner(saved, *(z.flatten(0, 2) for z in (dscores, dq_in, dk_out, dkept)))
    dx, dy, dg = (z.unflatten(0, kinds) for z in grads if z is not None)
    dx, dy = dx.sum(2), dy.sum(1).flatten(1, 2)
    if before_decay:
        dx = torch.stack((dx[:, 0], torch.cat((first, dx[:, 1, :-1]), 1)), 1)
    return dx.flatten(1, 2), dy, dg.sum((1, 2))
