"""Adam and AdamW: the bits of torch, and where weight decay goes."""

import pytest
import torch

from flame_accel.config import OptimizerConfig
from flame_accel.training import build_optimizer
from tests.helpers.optimizers import (
    HYPERPARAMETERS,
    SINGLE_PROCESS,
    build_gla,
    step_with_random_gradients,
    weights,
)


@pytest.mark.covers_option("optimizer.fused")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_adam_and_adamw_equal_torchs_to_the_bit(name, fused):
    model, reference = build_gla(), build_gla()
    optimizer = build_optimizer(
        SINGLE_PROCESS, model, OptimizerConfig(name=name, fused=fused, **HYPERPARAMETERS)
    )
    decayed = [p for p in reference.parameters() if p.squeeze().ndim >= 2]
    exempt = [p for p in reference.parameters() if p.squeeze().ndim < 2]
    groups = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
    torchs = getattr(torch.optim, name)(groups, betas=(0.9, 0.95), fused=fused, **HYPERPARAMETERS)
    step_with_random_gradients(model, optimizer)
    step_with_random_gradients(reference, torchs)
    assert all(map(torch.equal, weights(model), weights(reference)))
    assert optimizer.defaults["fused"] is fused


def test_adamw_decays_weights_separately_and_adam_through_the_gradient():
    moved = {}
    for name in ("AdamW", "Adam"):
        model = build_gla()
        optimizer = build_optimizer(
            SINGLE_PROCESS, model, OptimizerConfig(name=name, **HYPERPARAMETERS)
        )
        before = model.lm_head.weight.detach().clone()
        # of a gradient of zeros only the decay is left: a share of the weight, or a gradient
        step_with_random_gradients(model, optimizer, steps=1, scale=0.0)
        moved[name] = before - model.lm_head.weight.detach()
    torch.testing.assert_close(moved["AdamW"], 0.01 * 0.1 * before)
    first_update = 0.1 * before / (0.1 * before.abs() + 1e-8)
    torch.testing.assert_close(moved["Adam"], 0.01 * first_update, rtol=1e-4, atol=1e-7)
