"""Calls that ended in an error on a GPU: norms' gradients in any layout, ABC by position."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_accel.kernels import install, install_fused_kernels, uninstall
from flame_accel.kernels.fused.replace import fused_kernels_disabled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:, :1, :1].expand_as(x),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


@pytest.fixture(scope="module", autouse=True)
def fused() -> Iterator[None]:
    """Our kernels are in place."""
    importlib.import_module("fla")
    install("triton")
    install_fused_kernels()
    yield
    uninstall()
    install()


def build_norm(name: str) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A norm of x, and of a residual or gate where it takes one; all that it returns."""
    from fla.modules import FusedRMSNormGated, LayerNorm, RMSNorm

    kinds: dict[str, Any] = {"layer": LayerNorm, "rms": RMSNorm, "gated": FusedRMSNormGated}
    norm = kinds[name.split("-")[0]](64).cuda()
    if name == "gated":
        return lambda x, other: [norm(x, other)]
    if name.endswith("residual"):
        return lambda x, other: [*norm(x, residual=other, prenorm=True)]
    return lambda x, other: [norm(x) + 0 * other]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernels", ["ours", "fla"])
@pytest.mark.parametrize("name", ["rms", "rms-residual", "layer", "layer-residual", "gated"])
def test_a_norms_gradient_has_any_layout(name: str, kernels: str, layout: str):
    torch.manual_seed(0)
    norm = build_norm(name)
    inputs = [torch.randn(2, 33, 64, device="cuda", requires_grad=True) for _ in range(2)]
    with nullcontext() if kernels == "ours" else fused_kernels_disabled():
        results = norm(*inputs)
        directions = [LAYOUTS[layout](torch.randn_like(y)) for y in results]
        assert not any(x.is_contiguous() for x in directions)
        found = torch.autograd.grad(results, inputs, directions, retain_graph=True)
        contiguous = [x.contiguous() for x in directions]
        expected = torch.autograd.grad(results, inputs, contiguous)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_result_of_a_norm_with_a_residual_is_used(wanted: int):
    torch.manual_seed(0)
    norm = build_norm("rms-residual")
    inputs = [torch.randn(2, 33, 64, device="cuda", requires_grad=True) for _ in range(2)]
    direction = torch.randn(2, 33, 64, device="cuda")
    found, expected = [], []
    for gradients, kernels in ((found, nullcontext()), (expected, fused_kernels_disabled())):
        with kernels:
            y = norm(*inputs)[wanted]
            gradients += torch.autograd.grad(y, inputs, direction, materialize_grads=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_abc_layer_takes_its_arguments_by_position_as_in_fla():
    from fla.layers import ABCAttention

    torch.manual_seed(0)
    layer = ABCAttention(hidden_size=128, num_heads=2, num_slots=16, layer_idx=0).cuda()
    x = torch.randn(2, 40, 128, device="cuda")
    mask = torch.ones(2, 40, dtype=torch.long, device="cuda")
    mask[0, :3] = 0
    # kernels of fp32 take minutes to compile
    with torch.autocast("cuda", torch.bfloat16):
        expected = layer(hidden_states=x, attention_mask=mask)[0]
        assert torch.equal(layer(x, mask)[0], expected)
        y = layer(x, mask, None, False, False)[0]
        assert torch.equal(y, expected)
    y.mT.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
