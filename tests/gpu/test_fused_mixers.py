"""Layers whose activations are computed again give what fla's own path gives: all gradients too.

Errors are those against fla's path in fp32. Without a GPU, `TRITON_INTERPRET=1` in front of pytest
runs the same kernels on the CPU, as tests/unit/kernels/fused does.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flame_accel.kernels import install_fused_kernels, operator_recompute
from flame_accel.kernels.fused.replace import fused_kernels_disabled
from tests.helpers.triton_device import DEVICE, INTERPRETED, needs_triton

WIDTH = 32
# of documents in a row; None stands for two rows of equal length
BOUNDARIES = {"packed": [0, 66, 67, 90], "rows": None}
# the interpreter takes a second for some ten tokens: these are two chunks and more of RWKV-7
FEWER_BOUNDARIES = {"packed": [0, 34, 35, 44], "rows": None}

pytestmark = needs_triton


@pytest.fixture(scope="module", autouse=True)
def fused(triton: None) -> None:
    """Our kernels are in place."""
    install_fused_kernels()


def build_mamba2(**options: Any) -> nn.Module:
    from fla.layers import Mamba2

    sizes = {"hidden_size": WIDTH, "expand": 2, "head_dim": 32, "state_size": 16}
    return Mamba2(**sizes, **options, layer_idx=0)


def build_rwkv7(layer_index: int) -> nn.Module:
    from fla.layers import RWKV7Attention

    return RWKV7Attention(
        hidden_size=WIDTH, head_dim=16, decay_low_rank_dim=16, gate_low_rank_dim=16,
        a_low_rank_dim=16, v_low_rank_dim=16, layer_idx=layer_index, num_hidden_layers=2,
        fuse_norm=True,
    )  # fmt: skip


def build_rwkv7_feed_forward() -> nn.Module:
    from fla.models.rwkv7.modeling_rwkv7 import RWKV7FeedForward

    return RWKV7FeedForward(WIDTH, layer_idx=0, num_hidden_layers=2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "mamba2": build_mamba2,
    "mamba2-wide-skip": lambda: build_mamba2(D_has_hdim=True, dt_limit=(0.002, 0.05)),
    "rwkv7-first": lambda: build_rwkv7(0),
    "rwkv7-second": lambda: build_rwkv7(1),
    "rwkv7-feed-forward": build_rwkv7_feed_forward,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer.to(DEVICE).train()


def outputs_and_gradients(
    layer: nn.Module, layout: str, *, ours: bool, autocast: bool
) -> dict[str, Tensor]:
    fewer = INTERPRETED and "RWKV7" in type(layer).__name__
    boundaries = (FEWER_BOUNDARIES if fewer else BOUNDARIES)[layout]
    generator = torch.Generator().manual_seed(1)
    tokens = boundaries[-1] if boundaries else 35 if fewer else 70
    shape = (1 if boundaries else 2, tokens, WIDTH)
    x, weights = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
    x.requires_grad_()
    options = {}
    if boundaries is not None:
        options["cu_seqlens"] = torch.tensor(boundaries, dtype=torch.int32, device=DEVICE)
    if getattr(layer, "v_lora", None) is not None:
        dtype = torch.bfloat16 if autocast else torch.float32
        options["v_first"] = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        options["v_first"].requires_grad_()
    layer.zero_grad()
    kernels = nullcontext() if ours else fused_kernels_disabled()
    with kernels, torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        outputs = layer(x, **options)
    # values of the first layer go to all others
    returned = [y for y in (outputs[0], *outputs[3:]) if y.requires_grad]
    torch.autograd.backward([(y.float() * weights).sum() for y in returned])
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    found |= {name: y.grad for name, y in options.items() if y.requires_grad}
    assert x.grad is not None
    return {"output": outputs[0].detach().float(), "input": x.grad, **found}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - wanted).norm() / wanted.norm().clamp(min=1e-12)).item()
        for name, wanted in expected.items()
    }


RUNS = (
    ("mamba2", "packed"),
    ("mamba2-wide-skip", "rows"),
    ("rwkv7-first", "rows"),
    ("rwkv7-second", "packed"),
    ("rwkv7-feed-forward", "packed"),
)


@pytest.mark.parametrize(("name", "layout"), RUNS)
def test_fused_layer_is_as_exact_as_fla(name, layout):
    layer = build(name)
    exact = outputs_and_gradients(layer, layout, ours=False, autocast=False)
    in_fp32 = outputs_and_gradients(layer, layout, ours=True, autocast=False)
    assert max(errors(in_fp32, exact).values()) < 5e-3
    ours, fla = (
        errors(outputs_and_gradients(layer, layout, ours=which, autocast=True), exact)
        for which in (True, False)
    )
    # gradients of some vectors are sums of few numbers, and differ by chance
    assert all(error < 2 * fla[tensor] + 1e-3 for tensor, error in ours.items()), (ours, fla)
    ratios = [error / fla[tensor] for tensor, error in ours.items() if fla[tensor] > 1e-6]
    assert sum(ratios) / len(ratios) < 1.15, (ours, fla)


@pytest.mark.parametrize("name", ["rwkv7-second"])
def test_operators_that_recompute_nothing_have_the_same_bits(monkeypatch, name):
    layer = build(name)
    results = []
    for mode in ("always", "never"):
        monkeypatch.setattr(operator_recompute, "_mode", [mode])
        results.append(outputs_and_gradients(layer, "packed", ours=True, autocast=True))
    recomputed, kept = results
    assert all(torch.equal(value, kept[tensor]) for tensor, value in recomputed.items())


@pytest.mark.parametrize("name", LAYERS)
def test_fused_layer_keeps_less(monkeypatch, name):
    # on a GPU with room for them, RWKV-7's operator keeps its intermediate results
    monkeypatch.setattr(operator_recompute, "_mode", ["always"])
    layer = build(name)
    ours, fla = (bytes_kept_for_backward(layer, ours=which) for which in (True, False))
    assert ours < 0.7 * fla


def bytes_kept_for_backward(layer: nn.Module, *, ours: bool) -> int:
    """Bytes of all activations that the graph of a call holds."""
    counted = {}
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # casts of weights are smaller than activations of that number of tokens
        if storage.data_ptr() not in parameters:
            counted[storage.data_ptr()] = storage.nbytes()
        return tensor

    kernels = nullcontext() if ours else fused_kernels_disabled()
    x = torch.randn(1, 96 if INTERPRETED else 4096, WIDTH, device=DEVICE, requires_grad=True)
    options = {}
    if getattr(layer, "v_lora", None) is not None:
        options["v_first"] = torch.randn(x.shape, dtype=torch.bfloat16, device=DEVICE)
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with kernels, hooks, torch.autocast(DEVICE, torch.bfloat16):
        out = layer(x, **options)[0]
    assert out.requires_grad
    return sum(counted.values())
