"""Rounded linear maps and losses on distributions equal plain PyTorch: values and all gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fla.modules import FusedKLDivLoss
from fla.modules.fused_bitlinear import BitLinear, FusedBitLinear
from fla.modules.grpo import fused_grpo_loss
from fla.modules.grpo.ops import grpo_loss_torch
from torch import Tensor

from flame_accel.kernels import install
from flame_accel.kernels.modules import bitlinear, kl_div

TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def kernels():
    install("torch")
    yield
    install()


def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and all gradients of a random projection of it."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = function(*leaves)
    torch.manual_seed(0)
    return [y.detach(), *torch.autograd.grad((y * torch.randn(y.shape)).sum(), leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * e.norm(), f"tensor {index}"


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
    assert_same(*results)


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
    actual = run(rounded, [x, residual, norm, bias, weight, shift])
    assert_same(actual[:1], [levels @ ternary.mT + shift])
    torch.manual_seed(0)
    dout = torch.randn(actual[0].shape)
    leaves = [t.clone().requires_grad_() for t in (x, residual, norm, bias)]
    expected = torch.autograd.grad(normed(*leaves), leaves, dout @ ternary)
    dweight = dout.flatten(0, 1).mT @ levels.flatten(0, 1)
    assert_same(actual[1:], [*expected, dweight, dout.sum((0, 1))])


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
    assert_same([y * factor], [expected * torch.eye(5).mean()])


@pytest.mark.parametrize("rows_at_once", [1 << 22, 1])
def test_kl_divergence_equals_pytorch(rows_at_once, monkeypatch):
    monkeypatch.setattr(kl_div, "LOGITS", rows_at_once)
    torch.manual_seed(0)
    x, weight = torch.randn(20, 16), torch.randn(50, 16)
    teacher, teacher_weight = torch.randn(20, 24), torch.randn(50, 24)

    def plain(x, weight):
        log_p, log_t = (
            (x @ weight.mT).log_softmax(-1),
            (teacher @ teacher_weight.mT).log_softmax(-1),
        )
        return 3 * F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)

    def ours(x, weight):
        return 3 * FusedKLDivLoss()(x, teacher, weight, teacher_weight)

    assert_same(run(ours, [x, weight]), run(plain, [x, weight]))
    with torch.no_grad():
        assert_same([ours(x, weight)], [plain(x, weight)])


@pytest.mark.parametrize("masked", [False, True])
def test_grpo_equals_pytorch(masked):
    torch.manual_seed(0)
    logits, ref = torch.randn(3, 13, 50), torch.randn(3, 12) - 4
    ids, advantages = torch.randint(0, 50, (3, 20)), torch.randn(3)
    mask = torch.rand(3, 12) > 0.3 if masked else None
    assert_same(
        run(lambda x: fused_grpo_loss(x, ref, ids, advantages, 0.2, mask), [logits]),
        run(lambda x: grpo_loss_torch(x, ref, ids, advantages, 0.2, mask), [logits]),
    )
    results = [
        list(f(logits, ref, ids, advantages, 0.2, mask, True))
        for f in (fused_grpo_loss, grpo_loss_torch)
    ]
    assert_same(*results)
