"""Linear maps with the same input give what each gives alone, and add up one gradient."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flame_accel.kernels.fused import shared_input
from flame_accel.kernels.fused.replace import fused_kernels_disabled
from flame_accel.kernels.fused.shared_input import _LinearMaps, share_inputs_of_linear_maps


class Layer(nn.Module):
    """Queries, keys and a gate of the same states; values of others."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 6, bias=False)
        self.k_proj = nn.Linear(8, 4, bias=False)
        self.v_proj = nn.Linear(8, 4, bias=False)
        self.f_proj = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 6))
        self.b_proj = nn.Linear(8, 6)
        self.up_proj = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x + 1)
        return torch.cat((q * self.f_proj(x), k * v, self.b_proj(x)), -1)


@pytest.fixture(autouse=True)
def installed_fused_kernels(monkeypatch) -> None:
    monkeypatch.setattr(shared_input, "fused_kernels_are_installed", lambda: True)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The number of maps of each joint computation; tensors say that they are on a GPU."""
    found: list[int] = []
    apply = _LinearMaps.apply

    def count(x: Tensor, *weights: Tensor) -> Any:
        found.append(len(weights))
        return apply(x, *weights)

    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(_LinearMaps, "apply", count)
    # the product with fp32 sums exists on GPUs only, and these are fp32 anyway
    return found


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return [y, x.grad, *(gradients[name] for name in sorted(gradients))]


def test_results_and_gradients_are_those_of_each_map_alone(calls):
    torch.manual_seed(0)
    alone = Layer()
    joint = copy.deepcopy(alone)
    share_inputs_of_linear_maps(joint, compiled=False, recomputed=False)
    assert joint.state_dict().keys() == alone.state_dict().keys()
    for seed in range(3):
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
        for found, expected in zip(run(joint, x), run(alone, x), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)
    # values have another input and the last map is never called: both leave in the first pass
    assert calls == [5, 3, 3]


def test_maps_stay_apart_where_nothing_learns_or_a_hook_gathers(calls):
    joint = Layer()
    share_inputs_of_linear_maps(joint, compiled=False, recomputed=False)
    x = torch.randn(2, 8)
    with torch.no_grad():
        joint(x)
    with fused_kernels_disabled():
        joint(x)
    joint.k_proj.register_forward_pre_hook(lambda module, args: None)
    joint(x)
    assert calls == []


def test_autocast_computes_in_its_dtype_and_gives_gradients_of_fp32_weights(monkeypatch):
    layer = nn.ModuleDict({"gate_proj": nn.Linear(8, 4, bias=False)})
    layer["up_proj"] = nn.Linear(8, 4, bias=False)
    share_inputs_of_linear_maps(layer, compiled=False, recomputed=False)
    x = torch.randn(3, 8, requires_grad=True)
    rows, weights = x.bfloat16(), [linear.weight for linear in layer.values()]
    found = _LinearMaps.apply(rows, *weights)
    assert all(y.dtype is torch.bfloat16 for y in found)
    torch.autograd.backward(found, [torch.ones_like(y) for y in found])
    assert x.grad is not None and all(w.grad.dtype is torch.float32 for w in weights)
    expected = sum(w.detach().sum(0) for w in weights).expand(3, -1)
    assert torch.allclose(x.grad, expected, atol=3e-2)


@pytest.mark.parametrize(
    ("installed", "compiled", "recomputed", "shares"),
    [
        (True, False, False, True),
        (False, False, False, False),
        (True, True, False, False),
        (True, False, True, False),
    ],
)
def test_maps_share_inputs_with_fused_kernels_unless_forward_passes_run_in_parts(
    monkeypatch, installed, compiled, recomputed, shares
):
    monkeypatch.setattr(shared_input, "fused_kernels_are_installed", lambda: installed)
    layer = Layer()
    share_inputs_of_linear_maps(layer, compiled=compiled, recomputed=recomputed)
    assert ("forward" in vars(layer.q_proj)) is shares
