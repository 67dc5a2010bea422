"""The variants of attention: our function, fla's reference, and inputs for both."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from fla.ops.attn.naive import naive_parallel_attn
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from fla.ops.parallax.naive import naive_parallax
from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn
from torch import Tensor

from flame_accel.kernels.attention import (
    forgetting_attention,
    moba,
    nsa,
    parallax,
    stickbreaking_attention,
    wall_attention,
)
from flame_accel.kernels.attention import (
    path_attention as path,
)
from tests.helpers.gradients import assert_close, outputs_and_gradients

TOLERANCE = 1e-4


HEADS, GROUPS, WIDTH = 4, 2, 16


LENGTHS = [1, 5, 64, 129, 200]


DOCUMENTS = (1, 40, 93, 1, 66, 5, 93)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def log_gates(*shape: int) -> Tensor:
    """From nearly none to so strong that a few of them leave nothing."""
    return -torch.rand(shape).pow(4) * 20


def queries(length: int) -> Tensor:
    return normal(1, length, HEADS, WIDTH)


def keys(length: int) -> Tensor:
    return normal(1, length, GROUPS, WIDTH)


def gates(length: int) -> Tensor:
    return log_gates(1, length, HEADS)


def channel_gates(length: int) -> Tensor:
    return log_gates(1, length, HEADS, WIDTH)


def directions(length: int) -> Tensor:
    return torch.nn.functional.normalize(keys(length), dim=-1)


def factors(length: int) -> Tensor:
    return 2 * torch.rand(1, length, GROUPS)


def open_gates(length: int) -> Tensor:
    return torch.rand(1, length, HEADS)


def naive_forgetting(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **options) -> Tensor:
    return naive_parallel_attn(q, k, v, g=g, **options)[0]


def naive_wall(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_scalar: Tensor | None = None,
    window_size: int | None = None,
) -> Tensor:
    """Every pair of tokens and channels by itself, in double precision."""
    k, v = (x.double().repeat_interleave(HEADS // GROUPS, 2) for x in (k, v))
    sums = g.double().cumsum(1)
    later = torch.ones(q.shape[1], q.shape[1]).triu(1).bool()
    decays = (sums[:, :, None] - sums[:, None]).masked_fill(later[..., None, None], -torch.inf)
    scores = (q[:, :, None] * k[:, None] * decays.exp()).sum(-1) * q.shape[-1] ** -0.5
    if g_scalar is not None:
        scalars = g_scalar.double().cumsum(1)
        scores = scores + scalars[:, :, None] - scalars[:, None]
    if window_size is not None:
        later = later | torch.ones_like(later).tril(-window_size)
    weights = scores.masked_fill(later[..., None], -torch.inf).softmax(2)
    return torch.einsum("bijh,bjhd->bihd", weights, v).float()


def naive_path(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    """The recurrence of the paper: every token carries all earlier keys on, in double precision."""
    dtype, shares = q.dtype, HEADS // GROUPS
    q, k, v, w, beta, g = (x.double() for x in (q, k, v, w, beta, g))
    sums, outputs = g.cumsum(1), []
    carried = k[:, :0]
    for t in range(q.shape[1]):
        inner = (carried * w[:, t : t + 1]).sum(-1, keepdim=True)
        carried = carried - beta[:, t : t + 1, :, None] * inner * w[:, t : t + 1]
        carried = torch.cat([carried, k[:, t : t + 1]], 1)
        scores = (q[:, t : t + 1] * carried.repeat_interleave(shares, 2)).sum(-1)
        scores = (scores + sums[:, t : t + 1] - sums[:, : t + 1]) * q.shape[-1] ** -0.5
        values = v[:, : t + 1].repeat_interleave(shares, 2)
        outputs.append((scores.softmax(1).unsqueeze(-1) * values).sum(1))
    return torch.stack(outputs, 1).to(dtype)


def naive_nsa(
    q: Tensor, k: Tensor, v: Tensor, g_cmp: Tensor, g_slc: Tensor, g_swa: Tensor
) -> Tensor:
    """fla's references of the parts; its reference of the whole calls Triton and flash-attn."""
    scale = WIDTH**-0.5
    means = [
        moba.zero_padded_chunk_means(x[0].transpose(0, 1), 8).transpose(0, 1)[None] for x in (k, v)
    ]
    compressed, _ = naive_nsa_compression(q, *means, block_size=8, scale=scale)
    blocks = naive_nsa_topk(q, means[0], 4, 8, scale)
    # an unused slot must not be the first block a second time
    selected = naive_nsa_selection(q, k, v, blocks, 8, scale)
    window = naive_parallel_attn(q, k, v, window_size=5)[0]
    parts = zip((compressed, selected, window), (g_cmp, g_slc, g_swa), strict=True)
    return sum((o * g.unsqueeze(-1) for o, g in parts), torch.zeros(()))


def run_nsa(*tensors: Tensor, **options: Tensor) -> Tensor:
    return nsa.parallel_nsa(*tensors, block_counts=4, block_size=8, window_size=5, **options)


def run_moba(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    edges = torch.tensor([0, q.shape[1]]) if cu_seqlens is None else cu_seqlens
    return moba.parallel_moba(q, k, v, edges, chunk_size=8, topk=3)


def naive_moba(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Query by query, as the paper says it."""
    length, outputs = q.shape[1], []
    k, v = (x.repeat_interleave(HEADS // GROUPS, 2) for x in (k, v))
    for t in range(length):
        own = t // 8
        means = k[:, : own * 8].unflatten(1, (own, 8)).mean(2) if own else k[:, :0]
        match = (q[:, t : t + 1] * means).sum(-1)
        chosen = match.topk(min(2, own), 1).indices
        seen = torch.zeros(1, own + 1, HEADS, dtype=torch.bool).scatter_(1, chosen, True)
        seen[:, own] = True
        seen = seen.repeat_interleave(8, 1)[:, : t + 1]
        scores = (q[:, t : t + 1] * k[:, : t + 1]).sum(-1) * WIDTH**-0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(1)
        outputs.append((weights.unsqueeze(-1) * v[:, : t + 1]).sum(1))
    return torch.stack(outputs, 1)


class Variant(NamedTuple):
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    inputs: list[Callable[[int], Tensor]]


QKV: list[Callable[[int], Tensor]] = [queries, keys, keys]


VARIANTS = {
    "forgetting": Variant(forgetting_attention.parallel_attn, naive_forgetting, [*QKV, gates]),
    "forgetting-window": Variant(
        partial(forgetting_attention.parallel_attn, window_size=9),
        partial(naive_forgetting, window_size=9),
        [*QKV, gates],
    ),
    "wall": Variant(wall_attention.parallel_wall_attn, naive_wall, [*QKV, channel_gates]),
    "wall-window": Variant(
        partial(wall_attention.parallel_wall_attn, window_size=9),
        partial(naive_wall, window_size=9),
        [*QKV, channel_gates],
    ),
    "parallax": Variant(parallax.parallel_parallax, naive_parallax, [queries, *QKV]),
    "parallax-window": Variant(
        partial(parallax.parallel_parallax, window_size=9),
        partial(naive_parallax, window_size=9),
        [queries, *QKV],
    ),
    "stickbreaking": Variant(
        lambda *x, **y: stickbreaking_attention.parallel_stickbreaking_attn(*x, **y)[0],
        lambda *x: naive_stickbreaking_attn(*x)[0],
        QKV,
    ),
    "stickbreaking-current": Variant(
        lambda *x, **y: torch.cat(
            [
                o.flatten(2)
                for o in stickbreaking_attention.parallel_stickbreaking_attn(*x, None, True, **y)
            ],
            2,
        ),
        lambda *x: torch.cat([o.flatten(2) for o in naive_stickbreaking_attn(*x, None, True)], 2),
        QKV,
    ),
    "path": Variant(
        lambda *x, **y: path.parallel_path_attn(*x, **y)[0],
        naive_path,
        [*QKV, directions, factors, gates],
    ),
    "moba": Variant(run_moba, naive_moba, QKV),
    "nsa": Variant(run_nsa, naive_nsa, [*QKV, open_gates, open_gates, open_gates]),
}


def inputs(variant: Variant, length: int) -> list[Tensor]:
    torch.manual_seed(length)
    return [make(length) for make in variant.inputs]


# a query that sees one key has zero gradients, which rounding does not leave at zero
assert_same = partial(assert_close, absolute=1e-6)
run = partial(outputs_and_gradients, unused_inputs=True)
