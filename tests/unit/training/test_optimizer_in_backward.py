"""The optimizer in the backward pass: when gradients are freed, and what it changes in a run."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from flame_accel.config import OptimizerConfig
from flame_accel.training import build_optimizer
from flame_accel.training.optimizer_in_backward import OptimizerInBackward
from tests.helpers.optimizers import (
    SINGLE_PROCESS,
    STEP_IN_BACKWARD,
    build_gla,
    read_curve,
    resume_from_step_4,
    weights,
)


def test_gradients_of_all_parameters_never_exist_at_the_same_time():
    model = build_gla()
    config = OptimizerConfig(early_step_in_backward=True)
    optimizer = build_optimizer(SINGLE_PROCESS, model, config)
    assert isinstance(optimizer, OptimizerInBackward)
    optimizer.hook_sharded_else_all_parameters(torch.device("cpu"))
    alive: list[int] = []
    for parameter in model.parameters():
        parameter.register_hook(
            lambda gradient: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    before = [p.clone() for p in weights(model)]
    ids = torch.arange(40).view(1, 40)
    model(input_ids=ids, labels=ids).loss.backward()
    assert len(alive) == len(before)
    assert set(alive) == {0}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(map(torch.equal, weights(model), before))


@pytest.mark.covers_option("optimizer.early_step_in_backward")
@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_stepping_in_backward_changes_no_bit_of_a_run(train_here, flags, tmp_path, name):
    """A checkpoint of either way of stepping resumes under the other."""
    options = {**STEP_IN_BACKWARD, "optimizer.name": name, "evaluation.sample_tokens": 0}
    in_backward = flags(**options)
    after_backward = flags(
        **options
        | {"optimizer.early_step_in_backward": False, "job.dump_folder": tmp_path / "late"}
    )
    for argv in (in_backward, after_backward):
        train_here(argv)
    models = [load_file(tmp_path / run / "hf/model.safetensors") for run in ("run", "late")]
    # squares of the norm are summed up in another order
    assert read_curve(tmp_path / "run")[::2] == read_curve(tmp_path / "late")[::2]
    assert read_curve(tmp_path / "run") == pytest.approx(read_curve(tmp_path / "late"), rel=1e-6)
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    shutil.rmtree(tmp_path / "run/checkpoint")
    (tmp_path / "run/ended.json").unlink()
    shutil.copytree(tmp_path / "late/checkpoint", tmp_path / "run/checkpoint")
    resume_from_step_4(tmp_path / "run", lambda: train_here(in_backward))
    again = load_file(tmp_path / "run/hf/model.safetensors")
    assert all(torch.equal(again[key], models[1][key]) for key in again)
