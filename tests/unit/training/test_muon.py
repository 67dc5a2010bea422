"""Muon: its formulas, its orthogonalization, and what it agrees with."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from flame_accel.config import OptimizerConfig
from flame_accel.training import build_optimizer, muon
from flame_accel.training.muon import orthogonalize_by_newton_schulz
from flame_accel.training.optimizer import find_hidden_matrices
from tests.helpers.optimizers import (
    HYPERPARAMETERS,
    SINGLE_PROCESS,
    build_gla,
    step_with_random_gradients,
    weights,
)


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_orthogonalize_keeps_singular_vectors_and_evens_out_singular_values(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    core = u.mT @ orthogonalize_by_newton_schulz(matrices) @ v.mT
    lengths = core.diagonal(dim1=-2, dim2=-1)
    # the iteration lifts what is above a few thousandths of the largest
    large = s > 0.01 * s.amax(dim=-1, keepdim=True)
    assert large.float().mean() > 0.9
    assert lengths[large].min() > 0.6 and lengths.max() < 1.3
    torch.testing.assert_close(core, torch.diag_embed(lengths), rtol=0, atol=1e-4)


def reference_muon(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """Muon's formulas in double precision, one matrix at a time, without batches or transposes."""
    weight, momentum = weight.double(), torch.zeros_like(weight, dtype=torch.double)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient.double()
        x = 0.05 * gradient.double() + 0.95 * momentum
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        weight = weight - 0.01 * 0.1 * weight - 0.01 * 0.2 * max(weight.shape) ** 0.5 * x
    return weight.float()


@pytest.mark.covers_option("optimizer.name")
def test_muon_follows_its_formulas_on_hidden_matrices_and_adamw_on_the_rest():
    model, start, adamw_model = build_gla(), build_gla(), build_gla()
    config = OptimizerConfig(name="Muon", **HYPERPARAMETERS)
    optimizer = build_optimizer(SINGLE_PROCESS, model, config)
    adamw = build_optimizer(
        SINGLE_PROCESS, adamw_model, OptimizerConfig(name="AdamW", **HYPERPARAMETERS)
    )
    matrices = find_hidden_matrices(model)
    gradients: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}

    def keep() -> None:
        for name, parameter in model.named_parameters():
            gradients[name].append(parameter.grad)

    step_with_random_gradients(model, SimpleNamespace(step=keep), optimizer)
    step_with_random_gradients(adamw_model, adamw)
    references = zip(
        model.named_parameters(), start.parameters(), weights(adamw_model), strict=True
    )
    for (name, parameter), first, adamws in references:
        if parameter in matrices:
            expected = reference_muon(first.detach(), gradients[name])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(parameter.detach(), adamws), name


def test_muon_equals_torchs_in_bfloat16(monkeypatch):
    monkeypatch.setattr(
        muon, "_to_newton_schulz_device_and_dtype", lambda shard, parameter: shard.bfloat16()
    )
    model, reference = build_gla(), build_gla()
    optimizer = build_optimizer(
        SINGLE_PROCESS, model, OptimizerConfig(name="Muon", **HYPERPARAMETERS)
    )
    mine, others = find_hidden_matrices(model), find_hidden_matrices(reference)
    theirs = [parameter for parameter in reference.parameters() if parameter in others]
    torchs = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **HYPERPARAMETERS)
    step_with_random_gradients(model, optimizer)
    step_with_random_gradients(reference, torchs)
    for ours, parameter in zip(model.parameters(), reference.parameters(), strict=True):
        if ours in mine:
            # a rounding of bf16 in a step of at most about 0.01
            torch.testing.assert_close(ours, parameter, rtol=0, atol=1e-4)


def test_an_update_of_muon_has_the_rms_of_one_of_adamw():
    for shape in ((64, 64), (32, 256)):
        update = orthogonalize_by_newton_schulz(
            torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        )
        length = muon.UPDATE_RMS * max(shape) ** 0.5 * update.square().mean().sqrt()
        assert 0.15 < length < 0.25
