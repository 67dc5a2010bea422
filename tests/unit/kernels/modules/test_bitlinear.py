"""Norm, rounded activations and ternary weights in one map."""

import pytest
import torch
import torch.nn.functional as F
from fla.modules.fused_bitlinear import BitLinear, FusedBitLinear

from flame_accel.kernels import install
from flame_accel.kernels.modules import bitlinear
from tests.helpers.gradients import assert_close, outputs_and_gradients


@pytest.fixture(autouse=True, scope="module")
def kernels():
    install("torch")
    yield
    install()


def test_bitlinear_equals_norm_and_rounding_without_a_gradient():
    torch.manual_seed(0)
    fused, plain = FusedBitLinear(48, 40), BitLinear(48, 40)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(3, 20, 48)
    results = []
    for layer in (fused, plain):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        torch.manual_seed(1)
        (y * torch.randn(y.shape)).sum().backward()
        results.append([y.detach(), leaf.grad, layer.weight.grad, layer.norm.weight.grad])
    assert_close(*results)


@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_rounded_map_gives_gradients_as_if_nothing_were_rounded_but_the_factors(is_rms_norm):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 2, 9, 16).unbind()
    norm, bias, weight, shift = (torch.rand(n) for n in ((16,), (16,), (24, 16), (24,)))

    def rounded(x, residual, norm, bias, weight, shift):
        return bitlinear.layer_norm_linear_quant(
            x, norm, bias, weight, shift, residual, eps=1e-5, is_rms_norm=is_rms_norm
        )

    def normed(x, residual, norm, bias):
        x = x + residual
        if is_rms_norm:
            return F.rms_norm(x, (16,), norm, 1e-5) + bias
        return F.layer_norm(x, (16,), norm, bias, 1e-5)

    y = normed(x, residual, norm, bias)
    step = y.abs().amax(-1, keepdim=True) / 127
    levels = (y / step).round() * step
    size = weight.abs().mean()
    ternary = (weight / size).round().clamp(-1, 1) * size
    actual = outputs_and_gradients(rounded, [x, residual, norm, bias, weight, shift])
    assert_close(actual[:1], [levels @ ternary.mT + shift])
    torch.manual_seed(0)
    dout = torch.randn(actual[0].shape)
    leaves = [t.clone().requires_grad_() for t in (x, residual, norm, bias)]
    expected = torch.autograd.grad(normed(*leaves), leaves, dout @ ternary)
    dweight = dout.flatten(0, 1).mT @ levels.flatten(0, 1)
    assert_close(actual[1:], [*expected, dweight, dout.sum((0, 1))])


def test_rounded_map_keeps_the_sum_for_the_next_block():
    x, residual, weight = torch.randn(4, 16).bfloat16(), torch.randn(4, 16), torch.randn(8, 16)
    y, kept = bitlinear.layer_norm_linear_quant(
        x, None, None, weight.bfloat16(), None, residual, prenorm=True
    )
    assert y.dtype == torch.bfloat16
    assert torch.equal(kept, x.float() + residual)


def test_halves_are_rounded_away_from_zero():
    x = torch.tensor([[0.5, -0.5, 1.5, 2.5, -127.0]])
    y = bitlinear.layer_norm_linear_quant(
        x, None, None, torch.eye(5), None, eps=0.0, is_rms_norm=True
    )
    factor = x.norm() / 5**0.5
    expected = torch.tensor([[1.0, -1.0, 2.0, 3.0, -127.0]])
    assert_close([y * factor], [expected * torch.eye(5).mean()])
