"""Mamba's selective scan and layer equal recurrence and fla's layer; caches; packed documents."""

import pytest
import torch
from fla.layers import Mamba
from torch import nn

from flame_accel.kernels.recurrence import mamba
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    assert_cached_tokens_equal_one_pass,
    assert_packed_documents_are_apart,
    fla_method,
    perturbed,
)

pytestmark = pytest.mark.usefixtures("torch_kernels")
TOKENS = [1, 5, 16, 64, 65, 150]


def scan_recurrence(x, dt, a, b, c, h):
    outputs = []
    for t in range(x.shape[1]):
        h = (dt[:, t].unsqueeze(-1) * a).exp() * h
        h = h + (dt[:, t] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(-2)
        outputs.append((h @ c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), h


@pytest.mark.parametrize("states_at_once", [1 << 20, 1])
@pytest.mark.parametrize("tokens", TOKENS)
def test_selective_scan_equals_recurrence(tokens, states_at_once, monkeypatch):
    monkeypatch.setitem(mamba.MAX_STATE_ELEMENTS, "cpu", states_at_once)
    torch.manual_seed(tokens)
    x, dt = torch.randn(2, tokens, 6), 3 * torch.rand(2, tokens, 6)
    b, c = torch.randn(2, 2, tokens, 4).unbind()
    tensors = [x, dt, -5 * torch.rand(6, 4), b, c, torch.randn(2, 6, 4)]
    assert_close(
        outputs_and_gradients(mamba.selective_scan, tensors),
        outputs_and_gradients(scan_recurrence, tensors),
        absolute=1e-12,
    )


def build_layer() -> nn.Module:
    return perturbed(lambda: Mamba(hidden_size=32, intermediate_size=64, state_size=4, layer_idx=0))


def test_mamba_layer_equals_that_of_fla():
    layer = build_layer()
    x = torch.randn(2, 70, 32)
    mask = torch.arange(70) >= torch.tensor([[0], [9]])
    original = fla_method(Mamba, "slow_forward")
    for options in ({}, {"attention_mask": mask}):
        actual = outputs_and_gradients(
            lambda x, o=options: mamba.slow_forward(layer, x, None, True, **o), [x]
        )
        expected = outputs_and_gradients(
            lambda x, o=options: original(layer, x, None, True, **o), [x]
        )
        assert_close(actual, expected, absolute=1e-12)


def test_kernels_of_mamba_ssm_are_not_used_for_packed_documents(monkeypatch):
    monkeypatch.setattr(mamba, "_mamba_ssm_forward", lambda *args, **options: "mamba_ssm")
    layer, x = build_layer(), torch.randn(1, 12, 32)
    assert mamba.forward_mamba_ssm_unless_packed(layer, x) == "mamba_ssm"
    cu_seqlens = torch.tensor([0, 5, 12])
    o = mamba.forward_mamba_ssm_unless_packed(layer, x, cu_seqlens=cu_seqlens)[0]
    assert torch.equal(o, mamba.slow_forward(layer, x, cu_seqlens=cu_seqlens)[0])


def test_layer_one_token_at_a_time_equals_one_pass():
    assert_cached_tokens_equal_one_pass(build_layer())


def test_layer_keeps_packed_documents_apart():
    assert_packed_documents_are_apart(build_layer())
