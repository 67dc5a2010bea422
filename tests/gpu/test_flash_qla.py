"""The gated delta rule by FlashQLA on a Hopper GPU: values, gradients, bits, graphs.

Errors are those from our PyTorch implementation in fp32. They must not be larger than 1.25 times
those of fla's Triton kernels on the same inputs in bf16: the path without the package.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_accel.kernels import install, uninstall
from flame_accel.kernels.boundaries_on_host import remember_boundaries, view_padded_boundaries
from flame_accel.kernels.packages import (
    KERNEL_PACKAGES,
    flash_qla,
    install_package_kernels,
    package_kernels_disabled,
)
from flame_accel.kernels.recurrence import delta_rule
from tests.helpers.gradients import outputs_and_gradients, with_gradient_rounded_to_bf16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = (700, 64, 1, 513, 130, 640, 65, 300, 63, 128, 17, 200, 90, 0, 0, 0)
"""With empty documents at the end, as boundaries are padded for a CUDA graph."""
TOKENS = sum(LENGTHS)
HEADS = 6
PACKAGES = [package for package in KERNEL_PACKAGES if package.distribution == "flash-qla"]
NAMES = ("q", "k", "v", "g", "beta", "A_log", "dt_bias")
OPTIONS: dict[str, Any] = {
    "use_qk_l2norm_in_kernel": True,
    "use_beta_sigmoid_in_kernel": True,
    "use_gate_in_kernel": True,
    "state_v_first": True,
}
"""What fla's layer passes."""

Operator = Callable[..., tuple[Tensor, Tensor | None]]


@pytest.fixture(autouse=True)
def package(monkeypatch) -> Iterator[None]:
    # fla's own way to the package would not be the path without it
    monkeypatch.setenv("FLA_FLASH_QLA", "0")
    install("triton")
    if "flash-qla" not in install_package_kernels(PACKAGES):
        pytest.skip("needs the package FlashQLA and a Hopper GPU")
    yield
    uninstall()


def draw_tensors(values: int) -> list[Tensor]:
    """As the layer has them: bf16, but for the parameters of the gate."""
    torch.manual_seed(0)
    shape = (1, TOKENS, HEADS)
    halves = [torch.randn(*shape, size, device="cuda").bfloat16() for size in (128, 128, values)]
    gates = [torch.randn(*shape, device="cuda").bfloat16() for _ in range(2)]
    return [
        *halves,
        *gates,
        torch.rand(HEADS, device="cuda").mul(16).log(),
        torch.randn(HEADS, device="cuda") - 4,
    ]


def boundaries_of(lengths: tuple[int, ...]) -> Tensor:
    cu_seqlens = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    remember_boundaries(cu_seqlens, cu_seqlens.tolist())
    return cu_seqlens


def call_with(operator: Operator, cu_seqlens: Tensor) -> Callable[..., Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        named = dict(zip(NAMES, tensors, strict=True))
        return operator(**named, **OPTIONS, cu_seqlens=cu_seqlens)[0]

    return call


def fla_operator() -> Operator:
    """As installed: of fla, which may dispatch to the package."""
    import fla.ops.gated_delta_rule as module

    return module.chunk_gated_delta_rule


@pytest.mark.parametrize("values", [256, 128])
def test_a_layers_call_is_as_exact_as_without_the_package(values, monkeypatch):
    calls: list[int] = []
    package_function = flash_qla._functions[0]

    def count(**options: Any) -> tuple[Tensor, Tensor | None]:
        calls.append(1)
        return package_function(**options)

    monkeypatch.setattr(flash_qla, "_functions", [count])
    cu_seqlens, tensors = boundaries_of(LENGTHS), draw_tensors(values)
    ours = outputs_and_gradients(call_with(fla_operator(), cu_seqlens), tensors)
    assert calls == [1]
    with package_kernels_disabled():
        flas = outputs_and_gradients(call_with(fla_operator(), cu_seqlens), tensors)
    assert calls == [1]
    kept = boundaries_of(tuple(length for length in LENGTHS if length))
    exact = with_gradient_rounded_to_bf16(call_with(delta_rule.chunk_gated_delta_rule, kept))
    expected = outputs_and_gradients(exact, [x.float() for x in tensors])
    for name, a, b, e in zip(("o", *NAMES), ours, flas, expected, strict=True):
        mine, theirs = ((x.float() - e).norm() / e.norm() for x in (a, b))
        print(f"{values} {name}: {mine:.2e}, without {theirs:.2e}")
        assert mine <= 1.25 * theirs, f"{name}: {mine:.2e}, without {theirs:.2e}"


def test_bits_are_the_same_each_time_and_in_a_graph_with_other_documents():
    tensors = [x.requires_grad_() for x in draw_tensors(256)]
    cu_seqlens = boundaries_of(LENGTHS).clone()
    weights = torch.randn(1, TOKENS, HEADS, 256, device="cuda").bfloat16()

    def run() -> list[Tensor]:
        view = view_padded_boundaries(cu_seqlens, tokens=TOKENS, longest=TOKENS)
        o = call_with(fla_operator(), view)(*tensors)
        # nodes of an earlier pass that live on would tie a capture to the stream of that pass
        return [o.detach(), *torch.autograd.grad(o, tensors, weights)]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = run()
    for lengths in ((1, 2, TOKENS - 3, *[0] * 13), (TOKENS, *[0] * 15)):
        cu_seqlens.copy_(boundaries_of(lengths))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))


def test_the_host_does_not_wait_for_the_device():
    tensors = [x.requires_grad_() for x in draw_tensors(256)]
    cu_seqlens = boundaries_of(LENGTHS)
    weights = torch.randn(1, TOKENS, HEADS, 256, device="cuda").bfloat16()

    def run() -> None:
        o = call_with(fla_operator(), cu_seqlens)(*tensors)
        torch.autograd.grad(o, tensors, weights)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
