"""The train step: loss over targets, the guard against NaN and inf, batches on their device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from flame_accel import kernels
from flame_accel.models.catalogue import tiny_config
from flame_accel.training.step import (
    accepts_num_items_in_batch,
    batch_to_device_with_host_boundaries,
    compute_unscaled_nats_over_global_targets,
    count_global_targets_or_one,
    step_unless_found_inf_and_zero_grad,
)
from tests.helpers.runs import ROOT, SHORT_RUN, launch, read_records


def build(kind: str) -> Any:
    kernels.install()
    torch.manual_seed(0)
    config = (
        tiny_config("gla")
        if kind == "takes the number of targets"
        else LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["takes the number of targets", "takes the mean"])
def test_a_micro_batch_without_targets_adds_nothing(kind: str):
    accelerator, model = Accelerator(cpu=True), build(kind)
    ids = torch.arange(12).view(1, 12)
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100), "num_targets": 0}
    loss = compute_unscaled_nats_over_global_targets(accelerator, model, batch, 7)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_a_step_without_targets_is_divided_by_one():
    accelerator = Accelerator(cpu=True)
    assert [
        count_global_targets_or_one(accelerator, n, same_on_all_ranks=False) for n in (0, 5)
    ] == [1, 5]


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
    monkeypatch.setattr(train, "export_and_report", lambda *_: None)
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


@pytest.mark.parametrize(("rank_count", "tp"), [(4, 1), (4, 2)])
def test_a_constant_number_of_targets_counts_once_per_data_rank(rank_count: int, tp: int):
    parallelism = SimpleNamespace(tp_size=tp)
    accelerator: Any = SimpleNamespace(num_processes=rank_count, parallelism_config=parallelism)
    assert (
        count_global_targets_or_one(accelerator, 5, same_on_all_ranks=True) == 5 * rank_count // tp
    )


def test_models_that_divide_by_the_number_of_targets_are_recognized():
    model = build("takes the number of targets")
    assert accepts_num_items_in_batch(type(model))
    assert accepts_num_items_in_batch(type(build("takes the mean")))
    assert not accepts_num_items_in_batch(nn.Linear)


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
