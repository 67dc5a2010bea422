"""Cross-entropy, whole and over hidden states."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fla.modules.l2warp import l2_warp
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules import (
    loss,
)
from tests.helpers.gradients import assert_same_results, randn_each


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float, cap: float | None) -> Tensor:
    z = logits if cap is None else cap * torch.tanh(logits / cap)
    return F.cross_entropy(z, target, label_smoothing=smoothing, reduction="none")


TARGET = torch.tensor([3, -100, 0, 10, 5, -100, 7])


@pytest.mark.parametrize(("smoothing", "cap"), [(0.0, None), (0.1, 2.0)])
def test_cross_entropy(smoothing, cap):
    (logits,) = randn_each((7, 11))
    assert_same_results(
        lambda x: loss.cross_entropy_loss(x, TARGET, smoothing, logit_softcapping=cap)[0],
        lambda x: cross_entropy(x, TARGET, smoothing, cap),
        [logits],
    )
    total, z = loss.cross_entropy_loss(logits, TARGET, smoothing, 0.5, 0.01)
    z_expected = 0.01 * (0.5 * logits).logsumexp(-1) ** 2 * (TARGET >= 0)
    assert torch.allclose(z, z_expected)
    assert torch.allclose(total, cross_entropy(0.5 * logits, TARGET, smoothing, None) + z)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_module(reduction):
    (logits,) = randn_each((7, 11))
    module = SimpleNamespace(
        label_smoothing=0.0,
        logit_scale=1.0,
        lse_square_scale=0.0,
        logit_softcapping=None,
        ignore_index=-100,
        process_group=None,
        reduction=reduction,
        return_z_loss=False,
    )
    assert_same_results(
        lambda x: loss.forward_cross_entropy(module, x, TARGET),
        lambda x: F.cross_entropy(x, TARGET, reduction=reduction),
        [logits],
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("warped", [False, True])
def test_linear_cross_entropy_in_rows_equals_all_logits(reduction, warped, monkeypatch):
    # three rows at a time
    monkeypatch.setattr(loss, "MAX_LOGITS_AT_A_TIME", 33)
    x, weight, bias = randn_each((7, 6), (11, 6), (11,))

    def whole(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        logits = F.linear(x, w, b)
        total = F.cross_entropy(logits, TARGET, label_smoothing=0.1, reduction=reduction)
        return l2_warp(total, logits.unsqueeze(0)) if warped else total

    assert_same_results(
        lambda x, w, b: loss.fused_linear_cross_entropy_loss(
            x, TARGET, w, b, label_smoothing=0.1, reduction=reduction, use_l2warp=warped
        ),
        whole,
        [x, weight, bias],
    )
    with torch.no_grad():
        plain = loss.fused_linear_cross_entropy_loss(x, TARGET, weight, bias, reduction=reduction)
    assert torch.allclose(plain, F.cross_entropy(x @ weight.T + bias, TARGET, reduction=reduction))


def test_shared_vocabulary_is_refused():
    with pytest.raises(UserError, match="tensor_parallel_degree"):
        loss.cross_entropy_loss(torch.zeros(1, 2), torch.zeros(1).long(), process_group=object())
