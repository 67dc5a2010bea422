"""Distillation by KL divergence, and GRPO."""

import pytest
import torch
import torch.nn.functional as F
from fla.modules import FusedKLDivLoss
from fla.modules.grpo import fused_grpo_loss
from fla.modules.grpo.ops import grpo_loss_torch

from flame_accel.kernels import install
from flame_accel.kernels.modules import kl_div
from tests.helpers.gradients import assert_close, outputs_and_gradients


@pytest.fixture(autouse=True, scope="module")
def kernels():
    install("torch")
    yield
    install()


@pytest.mark.parametrize("rows_at_once", [1 << 22, 1])
def test_kl_divergence_equals_pytorch(rows_at_once, monkeypatch):
    monkeypatch.setattr(kl_div, "MAX_LOGITS_AT_A_TIME", rows_at_once)
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

    assert_close(
        outputs_and_gradients(ours, [x, weight]), outputs_and_gradients(plain, [x, weight])
    )
    with torch.no_grad():
        assert_close([ours(x, weight)], [plain(x, weight)])


@pytest.mark.parametrize("masked", [False, True])
def test_grpo_equals_pytorch(masked):
    torch.manual_seed(0)
    logits, ref = torch.randn(3, 13, 50), torch.randn(3, 12) - 4
    ids, advantages = torch.randint(0, 50, (3, 20)), torch.randn(3)
    mask = torch.rand(3, 12) > 0.3 if masked else None
    assert_close(
        outputs_and_gradients(
            lambda x: fused_grpo_loss(x, ref, ids, advantages, 0.2, mask), [logits]
        ),
        outputs_and_gradients(
            lambda x: grpo_loss_torch(x, ref, ids, advantages, 0.2, mask), [logits]
        ),
    )
    results = [
        list(f(logits, ref, ids, advantages, 0.2, mask, True))
        for f in (fused_grpo_loss, grpo_loss_torch)
    ]
    assert_close(*results)
