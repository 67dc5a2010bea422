"""Attention without flash-attn: its two functions equal softmax attention written out."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.flash import flash_attn_func, flash_attn_varlen_func

TOLERANCE = 1e-4
LENGTHS = (1, 40, 93, 1, 0, 66, 5, 130, 17, 93)
WINDOWS = [None, 2, 7, 70]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
) -> Tensor:
    """Softmax attention as flash-attn defines it, in double precision."""
    groups, ahead = q.shape[2] // k.shape[2], k.shape[1] - q.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(groups, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (scale or q.shape[-1] ** -0.5)
    i = torch.arange(q.shape[1], device=q.device)[:, None] + ahead
    j = torch.arange(k.shape[1], device=q.device)
    hidden = (j > i) if causal else torch.zeros_like(scores[0, 0], dtype=torch.bool)
    if window[0] >= 0:
        hidden = hidden | (j < i - window[0])
    if window[1] >= 0:
        hidden = hidden | (j > i + window[1])
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhij,bjhd->bihd", weights, v).float()


def inputs(batch: int, queries: int, keys: int, heads: int, groups: int, width: int = 16):
    torch.manual_seed(queries + keys)
    q = torch.randn(batch, queries, heads, width)
    return [q, *torch.randn(2, batch, keys, groups, width).unbind()]


def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and all gradients of a random projection of it."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    o = function(*leaves)
    torch.manual_seed(0)
    return [o.detach(), *torch.autograd.grad((o * torch.randn(o.shape).to(o)).sum(), leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        # a query that sees one key has gradients of zero, which rounding spares not
        assert (a - e).norm() <= tolerance * e.norm() + 1e-5, f"tensor {index}"


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 90), (5, 90), (64, 64), (129, 129), (300, 300), (90, 5)]
)
def test_rows_equal_softmax_attention(queries, keys, window):
    pair = (-1, -1) if window is None else (window - 1, 0)
    for groups, scale in ((4, None), (2, 0.3)):
        tensors = inputs(2, queries, keys, 4, groups)
        ours = partial(flash_attn_func, softmax_scale=scale, causal=True, window_size=pair)
        theirs = partial(reference, window=pair, scale=scale)
        assert_same(run(ours, tensors), run(theirs, tensors))


@pytest.mark.parametrize("window", [(-1, -1), (-1, 3), (4, -1), (4, 3), (0, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 30), (30, 30), (20, 30), (200, 200)])
def test_both_sides_of_a_window_equal_softmax_attention(queries, keys, window):
    tensors = inputs(1, queries, keys, 2, 1)
    actual = run(partial(flash_attn_func, window_size=window), tensors)
    assert_same(actual, run(partial(reference, causal=False, window=window), tensors))


Lengths = tuple[int, ...]
Window = tuple[int, int]


def packed(
    lengths_q: Lengths,
    lengths_k: Lengths,
    tensors: Sequence[Tensor],
    causal: bool = True,
    window: Window = (-1, -1),
) -> list[Tensor]:
    function = partial(
        flash_attn_varlen_func,
        cu_seqlens_q=torch.tensor([0, *lengths_q]).cumsum(0),
        cu_seqlens_k=torch.tensor([0, *lengths_k]).cumsum(0),
        max_seqlen_q=max(lengths_q),
        max_seqlen_k=max(lengths_k),
        causal=causal,
        window_size=window,
    )
    return run(function, [x[0] for x in tensors])


def separate(
    lengths_q: Lengths,
    lengths_k: Lengths,
    tensors: Sequence[Tensor],
    causal: bool = True,
    window: Window = (-1, -1),
) -> list[Tensor]:
    def by_document(q, k, v):
        parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
        return torch.cat([reference(*(x[None] for x in part), causal, window)[0] for part in parts])

    return run(by_document, [x[0] for x in tensors])


@pytest.mark.parametrize("window", WINDOWS)
def test_documents_equal_softmax_attention_of_each(window):
    pair = (-1, -1) if window is None else (window - 1, 0)
    tensors = inputs(1, sum(LENGTHS), sum(LENGTHS), 4, 2)
    actual = packed(LENGTHS, LENGTHS, tensors, window=pair)
    assert_same(actual, separate(LENGTHS, LENGTHS, tensors, window=pair))


def test_documents_with_earlier_keys_or_without_causality():
    queries, keys = (1, 1, 5, 30), (17, 1, 30, 30)
    for (lengths, causal), window in product(
        ((queries, True), (queries, False), (keys, False)), ((-1, -1), (6, 0))
    ):
        tensors = inputs(1, sum(lengths), sum(keys), 4, 2)
        actual = packed(lengths, keys, tensors, causal, window)
        assert_same(actual, separate(lengths, keys, tensors, causal=causal, window=window))


@pytest.mark.parametrize("window", [(-1, -1), (20, 0)])
def test_a_document_does_not_depend_on_its_neighbours_bits(window):
    q, k, v = (x[0] for x in inputs(1, sum(LENGTHS), sum(LENGTHS), 4, 2))
    first, last = 41, 134
    before = packed(LENGTHS, LENGTHS, (q[None], k[None], v[None]), window=window)
    for x in (q, k, v):
        x[:first] = torch.randn_like(x[:first])
        x[last:] = torch.inf
    after = packed(LENGTHS, LENGTHS, (q[None], k[None], v[None]), window=window)
    assert not torch.equal(after[0][:first], before[0][:first])
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a[first:last], b[first:last])


def test_dtypes_are_kept_and_autocast_decides():
    q, k, v = inputs(2, 30, 30, 2, 2)
    expected = reference(q, k, v)
    half = flash_attn_func(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = flash_attn_func(q, k, v, causal=True)
    for o in (half, cast):
        assert o.dtype == torch.bfloat16
        assert_same([o.float()], [expected], 5e-3)


@pytest.mark.parametrize(
    "options", [{"dropout_p": 0.1}, {"softcap": 30.0}, {"return_attn_probs": True}]
)
def test_what_pytorch_lacks_is_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        partial(flash_attn_func, **options)(*inputs(1, 4, 4, 2, 2))


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float | None,
    window_size: Window,
    enable_gqa: bool = True,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` promises, for machines that cannot run it."""
    lengths = [edges.diff().tolist() for edges in (edges_q, edges_k)]
    assert edges_q.dtype == edges_k.dtype == torch.int32
    assert [max(x) for x in lengths] == [longest_q, longest_k]
    assert q.shape[-1] % 8 == 0
    parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
    return torch.cat(
        [reference(*(x[None] for x in part), False, window_size, scale)[0] for part in parts]
    )


@pytest.fixture
def flash_kernel(monkeypatch):
    monkeypatch.setattr("flame_accel.kernels.attention.flash._has_flash", lambda q: True)
    monkeypatch.setattr("flame_accel.kernels.attention.flash.varlen_attn", kernel)


@pytest.mark.parametrize("window", [(-1, -1), (6, 0), (200, 0)])
@pytest.mark.parametrize("width", [16, 20])
def test_the_flash_kernel_is_called_as_it_wants_to_be(flash_kernel, width, window):
    for queries, keys in ((1, 90), (5, 90), (90, 90)):
        tensors = inputs(2, queries, keys, 4, 2, width)
        actual = run(partial(flash_attn_func, causal=True, window_size=window), tensors)
        assert_same(actual, run(partial(reference, window=window), tensors))
    for lengths in (LENGTHS, (1,) * len(LENGTHS)):
        keys = tuple(max(x) for x in zip(lengths, LENGTHS, strict=True))
        tensors = inputs(1, sum(lengths), sum(keys), 4, 2, width)
        actual = packed(lengths, keys, tensors, window=window)
        assert_same(actual, separate(lengths, keys, tensors, window=window))
