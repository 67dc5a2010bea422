"""Every variant of softmax attention equals fla's reference: outputs and all gradients."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from fla.ops.attn.naive import naive_attn_decoding, naive_parallel_attn
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from fla.ops.parallax.naive import naive_parallax
from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from flame_accel.kernels.attention import (
    cat,
    forgetting,
    moba,
    nsa,
    parallax,
    stickbreaking,
    wall,
)
from flame_accel.kernels.attention import (
    path_attention as path,
)

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
    means = [moba.chunk_means(x[0].transpose(0, 1), 8).transpose(0, 1)[None] for x in (k, v)]
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
    return moba.parallel_moba(q, k, v, edges, q.shape[1], chunk_size=8, topk=3)


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
    "forgetting": Variant(forgetting.parallel_attn, naive_forgetting, [*QKV, gates]),
    "forgetting-window": Variant(
        partial(forgetting.parallel_forgetting_attn, window_size=9),
        partial(naive_forgetting, window_size=9),
        [*QKV, gates],
    ),
    "wall": Variant(wall.parallel_wall_attn, naive_wall, [*QKV, channel_gates]),
    "wall-window": Variant(
        partial(wall.parallel_wall_attn, window_size=9),
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
        lambda *x, **y: stickbreaking.parallel_stickbreaking_attn(*x, **y)[0],
        lambda *x: naive_stickbreaking_attn(*x)[0],
        QKV,
    ),
    "stickbreaking-current": Variant(
        lambda *x, **y: torch.cat(
            [o.flatten(2) for o in stickbreaking.parallel_stickbreaking_attn(*x, None, True, **y)],
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
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and all gradients of a random projection of it."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    o = function(*leaves)
    torch.manual_seed(0)
    projected = (o * torch.randn(o.shape)).sum()
    grads = torch.autograd.grad(projected, leaves, materialize_grads=True)
    return [o.detach(), *grads]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        # a query that sees one key has gradients of zero, which rounding spares not
        assert (a - e).norm() <= tolerance * e.norm() + 1e-6, f"tensor {index}"


def inputs(variant: Variant, length: int) -> list[Tensor]:
    torch.manual_seed(length)
    return [make(length) for make in variant.inputs]


@each_variant
@pytest.mark.parametrize("length", LENGTHS)
def test_variants_equal_their_references(variant, length):
    tensors = inputs(variant, length)
    assert_same(run(variant.ours, tensors), run(variant.theirs, tensors))


@each_variant
def test_packed_documents_equal_separate_ones(variant):
    tensors = inputs(variant, sum(DOCUMENTS))
    edges = torch.tensor([0, *DOCUMENTS]).cumsum(0)

    def separate(*tensors: Tensor) -> Tensor:
        parts = zip(*(x.split(DOCUMENTS, 1) for x in tensors), strict=True)
        return torch.cat([variant.ours(*part) for part in parts], 1)

    assert_same(run(partial(variant.ours, cu_seqlens=edges), tensors), run(separate, tensors), 1e-5)


@each_variant
def test_a_document_does_not_depend_on_its_neighbours_bits(variant):
    tensors = inputs(variant, sum(DOCUMENTS))
    ours = partial(variant.ours, cu_seqlens=torch.tensor([0, *DOCUMENTS]).cumsum(0))
    first, last = 41, 134
    before = run(ours, tensors)
    for x in tensors:
        x[:, :first] = x[:, :first].flip(1)
        x[:, last:] = 0.5
    after = run(ours, tensors)
    assert not torch.equal(after[0][:, :first], before[0][:, :first])
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a[:, first:last], b[:, first:last])


@pytest.mark.parametrize("window", [None, 3])
def test_sinks_and_plain_attention_equal_the_reference(window):
    torch.manual_seed(0)
    tensors = [queries(40), keys(40), keys(40), torch.randn(HEADS)]

    def ours(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        with_sink = forgetting.parallel_attn(q, k, v, window_size=window, sink_bias=sink)
        return with_sink + forgetting.parallel_attn(q, k, v, window_size=window)

    def theirs(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        with_sink = naive_parallel_attn(q, k, v, window_size=window, sink_bias=sink)[0]
        return with_sink + naive_parallel_attn(q, k, v, window_size=window)[0]

    assert_same(run(ours, tensors), run(theirs, tensors))


@pytest.mark.parametrize("options", [{}, {"window_size": 4}, {"do_gate_scale": True}])
@pytest.mark.parametrize("gated", [False, True])
def test_one_decoding_step_equals_the_reference(gated, options):
    torch.manual_seed(0)
    total = sum(DOCUMENTS)
    q, k, v = normal(1, len(DOCUMENTS), HEADS, WIDTH), keys(total), keys(total)
    g = gates(total) if gated else None
    options |= {"cu_seqlens": torch.tensor([0, *DOCUMENTS]).cumsum(0)}
    options |= {"sink_bias": torch.randn(HEADS)} if "window_size" in options else {}
    actual = forgetting.attn_decoding_one_step(q, k, v, g, **options)
    assert_same([actual], [naive_attn_decoding(q, k, v, g, **options)])


def test_parallax_continues_after_padding_and_a_cache():
    torch.manual_seed(0)
    q, r, k, v = queries(30), queries(30), keys(30), keys(30)
    expected = naive_parallax(*(x[:, 4:] for x in (q, r, k, v)))
    start = torch.tensor([4])
    prompt = parallax.parallax_decode(*(x[:, :20] for x in (q, r, k, v)), cache_start=start)
    rest = parallax.parallax_decode(q[:, 20:], r[:, 20:], k, v, cache_start=start)
    assert prompt[:, :4].eq(0).all()
    assert_same([torch.cat([prompt[:, 4:], rest], 1)], [expected])


def test_path_keeps_keys_carried_to_the_end_of_each_document():
    torch.manual_seed(0)
    total = sum(DOCUMENTS)
    tensors = [queries(total), keys(total), keys(total), directions(total), factors(total)]
    edges = torch.tensor([0, *DOCUMENTS]).cumsum(0)
    _, cache = path.parallel_path_attn(*tensors, cu_seqlens=edges, use_cache=True)
    assert cache is not None
    parts, own = [], (tensors[1], *tensors[3:])
    for k, w, beta in zip(*(x[0].split(DOCUMENTS) for x in own), strict=True):
        for t in range(len(k)):
            inner = (k[:t] * w[t]).sum(-1, keepdim=True) * beta[t, :, None]
            k = torch.cat([k[:t] - inner * w[t], k[t:]])
        parts.append(k)
    assert_same([cache[0]], [torch.cat(parts)])


def test_sparse_attention_continues_after_a_cache():
    variant = VARIANTS["nsa"]
    q, k, v, *gated = inputs(variant, 50)
    whole = variant.ours(q, k, v, *gated)
    last = variant.ours(*(x[:, 45:] if x.shape[2] == HEADS else x for x in (q, k, v, *gated)))
    assert_same([last], [whole[:, 45:]], 1e-5)
    pair = (torch.tensor([0, 5, 6]), torch.tensor([0, 50, 100]))
    both = [torch.cat([x[:, 45:], x[:, -1:]], 1) for x in (q, *gated)]
    twice = [torch.cat([x, x], 1) for x in (k, v)]
    packed = variant.ours(both[0], *twice, *both[1:], cu_seqlens=pair)
    assert_same([packed], [torch.cat([whole[:, 45:], whole[:, -1:]], 1)], 1e-5)


@each_variant
def test_memory_grows_linearly_with_the_length(variant):
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept[-1] += x.numel()
        return x

    for length in (256, 1024):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            variant.ours(*(x.requires_grad_() for x in inputs(variant, length)))
    assert kept[1] <= 4.3 * kept[0]


def test_a_mask_given_as_a_function_equals_flex_attention():
    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return ((j % 5 == 0) | (i // 5 == j // 5)) & (i >= j)

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 33, 16).unbind()
    mask = cat.create_block_mask(mask_mod, None, None, 33, 33)
    actual = cat.flex_attention(q, k, v, block_mask=mask)
    block_mask = torch_flex.create_block_mask(mask_mod, None, None, 33, 33, device="cpu")
    assert_same([actual], [torch_flex.flex_attention(q, k, v, block_mask=block_mask)])
