"""The norm of the gradient of all ranks, and clipping by it."""

import pytest
import torch
from torch import nn

from flame_accel.parallel import clip_gradients_and_get_norm
from tests.helpers.runs import ROOT, launch

PROGRAMS = ROOT / "tests/helpers/rank_programs.py"


@pytest.mark.distributed
def test_gradients_of_all_kinds_have_one_norm_and_are_clipped_to_it():
    launch(["mixed_gradients"], config="fsdp2", processes=4, script=PROGRAMS)


def test_one_process_clips_as_torch_does(build_on_cpu):
    accelerator = build_on_cpu()
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    norm = clip_gradients_and_get_norm(accelerator, model, 0.5)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(other.parameters(), 0.5))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bound_of_0_leaves_the_gradients_alone(build_on_cpu):
    accelerator, model = build_on_cpu(), nn.Linear(5, 3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    assert clip_gradients_and_get_norm(accelerator, model, 0.0).item() == pytest.approx(
        100 * 18**0.5
    )
    assert all((p.grad == 100).all() for p in model.parameters() if p.grad is not None)


def test_clipping_does_not_wait_for_the_device(build_on_cpu):
    """The meta device has no values to give."""
    accelerator, model = build_on_cpu(), nn.Linear(5, 3, device="meta")
    accelerator.state.device = torch.device("meta")
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    assert clip_gradients_and_get_norm(accelerator, model, 1.0).is_meta


def test_a_gradient_that_is_not_finite_has_no_finite_norm(build_on_cpu):
    accelerator, model = build_on_cpu(), nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[1.0, torch.nan]])
    assert not clip_gradients_and_get_norm(accelerator, model, 1.0).isfinite()
