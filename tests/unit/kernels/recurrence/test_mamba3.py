"""Mamba-3's layer equals its recurrence: values and all gradients; caches; packed documents."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fla.layers.mamba3 import Mamba3
from torch import Tensor, nn

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence import mamba3
from tests.helpers.gradients import assert_close
from tests.helpers.recurrence import (
    assert_cached_tokens_equal_one_pass,
    assert_packed_documents_are_apart,
    perturbed,
)

pytestmark = pytest.mark.usefixtures("torch_kernels")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "normed": lambda: Mamba3(
        hidden_size=32, head_dim=16, state_size=8, n_groups=2, is_outproj_norm=True, layer_idx=0
    ),
    "gated": lambda: Mamba3(hidden_size=32, head_dim=16, state_size=8, layer_idx=0),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def mamba3_recurrence(layer: Mamba3, x: Tensor) -> Tensor:
    """Its definition, for groups shared by heads, token by token."""
    z, v, b, c, dt, rate, trap, angles = layer._project_and_split(x)
    v, z = (y.unflatten(-1, (layer.num_heads, -1)) for y in (v, z))
    dt, trap = F.softplus(dt + layer.dt_bias), trap.sigmoid()
    decay = (layer._compute_a(rate) * dt).exp()
    heads = layer.num_heads // layer.n_groups
    norms = [(layer.C_norm, c, layer.C_bias), (layer.B_norm, b, layer.B_bias)]
    q, k = (
        norm(y.unflatten(-1, (layer.n_groups, -1))).repeat_interleave(heads, 2) + bias.squeeze(1)
        for norm, y, bias in norms
    )
    turn = (angles.tanh()[:, :, None] * torch.pi * dt[..., None]).cumsum(1)
    turn = F.pad(turn, (0, layer.ssm_state_size // 2 - turn.shape[-1]))
    rotation = torch.polar(torch.ones_like(turn), turn)
    q, k = (
        torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * rotation).flatten(-2)
        for y in (q, k)
    )
    h, last = 0.0, torch.zeros_like(v[:, 0, :, :, None] * k[:, 0, :, None])
    outputs = []
    for t in range(x.shape[1]):
        now = v[:, t, :, :, None] * k[:, t, :, None]
        weight, own = dt[:, t, :, None, None], trap[:, t, :, None, None]
        h = decay[:, t, :, None, None] * (h + weight * (1 - own) * last) + weight * own * now
        last = now
        outputs.append((h @ q[:, t, :, :, None]).squeeze(-1) + layer.D[:, None] * v[:, t])
    y = torch.stack(outputs, 1)
    if layer.is_outproj_norm:
        return layer.out_proj(layer.norm(y.flatten(2), z.flatten(2)))
    return layer.out_proj((y * F.silu(z)).flatten(2))


@every_layer
@pytest.mark.parametrize("tokens", [2, 40, 70])
def test_mamba3_layer_equals_recurrence(tokens, name):
    layer: Any = perturbed(LAYERS[name])
    x = torch.randn(2, tokens, 32)
    parameters = list(layer.parameters())

    def results(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        torch.manual_seed(0)
        projected = (y * torch.randn(y.shape)).sum()
        return [y.detach(), *torch.autograd.grad(projected, [leaf, *parameters])]

    actual = results(lambda x: mamba3.forward_mamba3(layer, x)[0])
    assert_close(actual, results(lambda x: mamba3_recurrence(layer, x)), absolute=1e-12)


@every_layer
def test_layer_one_token_at_a_time_equals_one_pass(name):
    assert_cached_tokens_equal_one_pass(perturbed(LAYERS[name]))


@every_layer
def test_layer_keeps_packed_documents_apart(name):
    assert_packed_documents_are_apart(perturbed(LAYERS[name]))


def test_several_inputs_per_head_are_refused_without_mamba_ssm(monkeypatch):
    monkeypatch.setattr(mamba3, "is_fast_path_available", False)
    layer: Any = perturbed(LAYERS["gated"])
    layer.is_mimo = True
    with pytest.raises(UserError, match="is_mimo"):
        mamba3.forward_mamba3(layer, torch.randn(1, 5, 32))
