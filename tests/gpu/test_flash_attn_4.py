"""Softmax attention by flash-attn-4 on a Hopper GPU: values, gradients, bits, graphs, training.

Errors are those from the formula in double precision. They must not be larger than 1.25 times those
of PyTorch's flash attention on the same inputs in bf16: the path without the package.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from flame_accel.kernels import active_kernel_packages, uninstall
from flame_accel.kernels.attention.flash_attention import flash_attn_func, flash_attn_varlen_func
from flame_accel.kernels.boundaries_on_host import view_padded_boundaries
from flame_accel.kernels.packages import (
    KERNEL_PACKAGES,
    flash_attn_4,
    install_package_kernels,
    package_kernels_disabled,
)
from tests.helpers.attention import inputs, reference
from tests.helpers.gradients import outputs_and_gradients, with_gradient_rounded_to_bf16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = (700, 64, 1, 513, 130, 640, 0, 0)
"""With empty documents at the end, as boundaries are padded for a CUDA graph."""
PACKAGES = [package for package in KERNEL_PACKAGES if package.distribution == "flash-attn-4"]

each_width = pytest.mark.parametrize("width", flash_attn_4.PROVEN_CHANNELS)
each_window = pytest.mark.parametrize("window", [(-1, -1), (200, 0)], ids=str)
each_sharing = pytest.mark.parametrize("groups", [4, 1])


@pytest.fixture(autouse=True)
def package() -> Iterator[None]:
    if "flash-attn-4" not in install_package_kernels(PACKAGES):
        pytest.skip("needs the package flash-attn-4 and a Hopper GPU")
    yield
    uninstall()


def cu_seqlens_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths], device="cuda", dtype=torch.int32).cumsum(0).int()


def packed(window: tuple[int, int], lengths: tuple[int, ...] = LENGTHS) -> Callable[..., Tensor]:
    boundaries = cu_seqlens_of(lengths)
    return partial(
        flash_attn_varlen_func,
        cu_seqlens_q=boundaries, cu_seqlens_k=boundaries,
        max_seqlen_q=sum(lengths), max_seqlen_k=sum(lengths), causal=True, window_size=window,
    )  # fmt: skip


def by_document(window: tuple[int, int]) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
        rows = [
            reference(*(x[None] for x in part), window=window) for part in parts if len(part[0])
        ]
        return torch.cat(rows, 1)[0]

    return attend


def assert_as_exact_as_torch(
    attend: Callable[..., Tensor], exact: Callable[..., Tensor], tensors: list[Tensor]
) -> None:
    """Compares errors of outputs and gradients with those of the path without the package."""
    tensors = [x.cuda().bfloat16() for x in tensors]
    assert "flash-attn-4" in active_kernel_packages()
    ours = outputs_and_gradients(attend, tensors)
    with package_kernels_disabled():
        torchs = outputs_and_gradients(attend, tensors)
    expected = outputs_and_gradients(
        with_gradient_rounded_to_bf16(exact), [x.float() for x in tensors]
    )
    assert not all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    for index, (a, b, e) in enumerate(zip(ours, torchs, expected, strict=True)):
        mine, theirs = ((x.float() - e).norm() / e.norm() for x in (a, b))
        print(f"tensor {index}: {mine:.2e}, without {theirs:.2e}")
        assert mine <= 1.25 * theirs, f"tensor {index}: {mine:.2e}, without {theirs:.2e}"


@each_width
@each_window
@each_sharing
def test_documents_are_as_exact_as_without_the_package(width, window, groups):
    tensors = [x[0] for x in inputs(1, sum(LENGTHS), sum(LENGTHS), 4, groups, width)]
    assert_as_exact_as_torch(packed(window), by_document(window), tensors)


@each_width
@each_window
@each_sharing
def test_rows_are_as_exact_as_without_the_package(width, window, groups):
    attend = partial(flash_attn_func, causal=True, window_size=window)
    tensors = inputs(2, 1100, 1100, 4, groups, width)
    assert_as_exact_as_torch(attend, partial(reference, window=window), tensors)


@each_width
def test_a_document_does_not_depend_on_its_neighbours_bits(width):
    q, k, v = (x[0].cuda().bfloat16() for x in inputs(1, sum(LENGTHS), sum(LENGTHS), 4, 4, width))
    attend = packed((-1, -1))
    first, last = 765, 1408
    before = attend(q, k, v)
    for x in (q, k, v):
        x[:first] = torch.randn_like(x[:first])
        x[last:] = 7.0
    after = attend(q, k, v)
    assert not torch.equal(after[:first], before[:first])
    assert torch.equal(after[first:last], before[first:last])


@each_width
@each_sharing
def test_deterministic_gradients_have_the_same_bits_each_time(width, groups):
    lengths = (3000, 4096, 17, 2000, 0)
    tensors = [
        x[0].cuda().bfloat16() for x in inputs(1, sum(lengths), sum(lengths), 8, groups, width)
    ]
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (
            outputs_and_gradients(packed((-1, -1), lengths), tensors) for _ in range(4)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in first)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_graph_replays_with_other_documents():
    tokens = sum(LENGTHS)
    q, k, v = (x[0].cuda().bfloat16().requires_grad_() for x in inputs(1, tokens, tokens, 4, 4, 64))
    boundaries = cu_seqlens_of(LENGTHS)
    weights = torch.randn(tokens, 4, 64, device="cuda", dtype=torch.bfloat16)

    def run() -> list[Tensor]:
        view = view_padded_boundaries(boundaries, tokens=tokens, longest=tokens)
        o = flash_attn_varlen_func(q, k, v, view, view, tokens, tokens, causal=True)
        return [o, *torch.autograd.grad(o, (q, k, v), weights)]

    torch.use_deterministic_algorithms(True)
    try:
        run()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = run()
        for lengths in ((tokens, *[0] * 7), (1, 2, tokens - 3, 0, 0, 0, 0, 0)):
            boundaries.copy_(cu_seqlens_of(lengths))
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
