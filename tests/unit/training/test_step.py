"""The train step: clipping, the guard against NaN and inf, batches on their device."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from flame_accel.training.step import (
    batch_to_device_with_host_boundaries,
    step_unless_found_inf_and_zero_grad,
)
from tests.helpers.runs import ROOT, SHORT_RUN, launch, read_records


@pytest.mark.covers_option("training.skip_nan_inf")
@pytest.mark.parametrize("skips", [True, False])
def test_skip_nan_inf_decides_what_becomes_of_such_an_update(
    train_here, flags, tmp_path, monkeypatch, skips
):
    from flame_accel import train

    finite = []
    compute = train.train_step

    def spoil(accelerator, model, optimizer, micro_batches, **options):
        hook = model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
        result = compute(accelerator, model, optimizer, micro_batches, **options)
        hook.remove()
        finite.append(all(p.isfinite().all().item() for p in model.parameters()))
        return result

    monkeypatch.setattr(train, "train_step", spoil)
    monkeypatch.setattr(train, "export_and_sample", lambda *_: None)
    train_here(flags(**SHORT_RUN, **{"training.skip_nan_inf": skips}))
    assert finite == [skips, skips]


@pytest.mark.covers_option("training.max_norm")
def test_max_norm_clips_and_0_does_not(train_here, flags, tmp_path, monkeypatch):
    from flame_accel import train

    norms: dict[str, list[float]] = {}
    compute = train.train_step

    def look(accelerator, model, optimizer, micro_batches, **options):
        kept = {}

        def before_update(*_: Any) -> None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            kept["norm"] = torch.nn.utils.get_total_norm(gradients).item()

        handle = optimizer.optimizer.register_step_pre_hook(before_update)
        result = compute(accelerator, model, optimizer, micro_batches, **options)
        handle.remove()
        norms.setdefault(str(options["max_norm"]), []).append(kept["norm"])
        return result

    monkeypatch.setattr(train, "train_step", look)
    for largest in (0.01, 0):
        folder = {"job.dump_folder": tmp_path / str(largest)}
        train_here(flags(**SHORT_RUN, **folder, **{"training.max_norm": largest}))
    assert norms["0.01"] == pytest.approx([0.01] * 2, rel=1e-3)
    reported = [record["optimizer/grad_norm"] for record in read_records(tmp_path / "0")]
    assert norms["0.0"] == pytest.approx(reported) and min(reported) > 0.1


def test_a_non_finite_gradient_leaves_the_weights_alone(train_here, flags, monkeypatch):
    from flame_accel import train

    seen = []
    train_step = train.train_step

    def spoil(accelerator, model, optimizer, micro_batches, **options):
        before = [p.detach().clone() for p in model.parameters()]
        hook = None
        if len(seen) in (2, 3):
            hook = model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
        result = train_step(accelerator, model, optimizer, micro_batches, **options)
        if hook is not None:
            hook.remove()
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        seen.append((result.skipped.item(), all(same), any(same)))
        return result

    monkeypatch.setattr(train, "train_step", spoil)
    train_here(flags())
    for index, (skipped, all_same, any_same) in enumerate(seen):
        if index in (2, 3):
            assert (skipped, all_same) == (1.0, True)
        else:
            assert (skipped, any_same) == (0.0, False)


@pytest.mark.distributed
def test_what_one_rank_finds_is_skipped_by_all() -> None:
    """Of FSDP2, where each rank has a shard of the gradient; DDP's are the same on all ranks."""
    programs = ROOT / "tests/helpers/rank_programs.py"
    launch(["poisoned_gradient"], config="fsdp2", processes=2, script=programs)


@pytest.mark.parametrize("fused", [True, False])
def test_an_update_that_found_inf_changes_nothing_and_clears_the_gradients(fused: bool):
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 3)
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(model.parameters(), fused=fused))
    before = model.weight.detach().clone()
    for found_inf, changes in ((1.0, False), (0.0, True)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        step_unless_found_inf_and_zero_grad(optimizer, torch.tensor(found_inf))
        assert torch.equal(model.weight, before) is not changes
        assert model.weight.grad is None


def test_only_tensors_of_a_batch_move_to_the_device():
    batch = batch_to_device_with_host_boundaries(
        {"input_ids": torch.zeros(1, 2), "num_targets": 2}, torch.device("meta")
    )
    assert batch["input_ids"].is_meta
    assert batch["num_targets"] == 2
