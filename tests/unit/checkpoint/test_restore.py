"""Where a run starts: its own checkpoint, another run or model, or the first step."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from flame_accel.config import ConfigError, UserError
from tests.helpers.checkpoints import equal_tensors, list_checkpoints, read_weights
from tests.helpers.runs import WITHOUT_SAMPLE, read_log, read_losses

# what


WEIGHTS_ONLY = {"checkpoint.model_weights_only": True, "checkpoint.export_dtype": "bfloat16"}


def test_weights_alone_cannot_be_resumed_but_the_newest_full_checkpoint_can(
    train_here, flags, tmp_path
):
    train_here(flags(**WITHOUT_SAMPLE, **WEIGHTS_ONLY))
    longer = flags(**WITHOUT_SAMPLE, **{"training.steps": 10})
    with pytest.raises(UserError, match="step 8 contains only the model's weights") as raised:
        train_here(longer)
    assert "step 4 with checkpoint.load_step" in str(raised.value)
    assert "checkpoint.initial_load_path" in str(raised.value)
    train_here([*longer, "--checkpoint.load_step=4"])
    run = tmp_path / "run"
    assert list(read_losses(run)) == list(range(1, 11))
    assert "step-8.superseded-0" in list_checkpoints(run)


def test_without_a_full_checkpoint_the_remedy_is_a_new_run(train_here, flags):
    train_here(flags(**WITHOUT_SAMPLE, **WEIGHTS_ONLY, **{"checkpoint.interval": 100}))
    with pytest.raises(UserError) as raised:
        train_here(flags(**WITHOUT_SAMPLE, **{"training.steps": 10}))
    assert "checkpoint.load_step" not in str(raised.value)
    assert "checkpoint.initial_load_path" in str(raised.value)


# where from


@pytest.fixture
def seeded(train_here, flags, tmp_path):
    """The first weights of a run that starts from a path."""
    numbers = itertools.count()

    def run(path: object) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"seeded-{next(numbers)}"
        options = {
            "job.dump_folder": folder,
            "checkpoint.initial_load_path": path,
            "checkpoint.create_seed_checkpoint": True,
            "training.seed": 7,
        }
        train_here(flags(**WITHOUT_SAMPLE, **options))
        return read_weights(folder / "checkpoint/step-0")

    return run


@pytest.mark.covers_option("checkpoint.initial_load_path")
def test_a_run_starts_with_the_weights_of_another(finished, seeded):
    for source in ("hf", "checkpoint/step-8"):
        assert equal_tensors(seeded(finished / source), read_weights(finished / "hf")), source
    assert not equal_tensors(seeded(finished / "checkpoint/step-4"), read_weights(finished / "hf"))


def test_a_run_starts_with_a_model_that_transformers_saved(seeded, finished, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(finished / "hf", dtype=torch.bfloat16)
    # several files, and an index that names them
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert equal_tensors(
        seeded(tmp_path / "theirs"), {n: w.float() for n, w in model.state_dict().items()}
    )


def test_only_a_run_without_checkpoints_uses_the_initial_path(
    train_here, flags, tmp_path, finished
):
    options = {"checkpoint.initial_load_path": finished / "hf", "training.steps": 4}
    run = tmp_path / "run"
    train_here(flags(**WITHOUT_SAMPLE, **options))
    assert f"starting with the weights of {finished / 'hf'}" in read_log(run)
    # of a trained model, at the first step of a new run
    assert read_losses(run)[1] < read_losses(finished)[1]
    assert list(read_losses(run)) == [1, 2, 3, 4]
    train_here(flags(**WITHOUT_SAMPLE, **options | {"training.steps": 6}))
    assert "continuing after step 4" in read_log(run)
    assert list(read_losses(run)) == [1, 2, 3, 4, 5, 6]


EVERYTHING = {"checkpoint.initial_load_model_weights_only": False}


@pytest.mark.covers_option("checkpoint.initial_load_model_weights_only")
def test_a_run_resumes_everything_of_another_run(train_here, flags, tmp_path, finished):
    source = finished / "checkpoint/step-4"
    train_here(flags(**WITHOUT_SAMPLE, **EVERYTHING, **{"checkpoint.initial_load_path": source}))
    run = tmp_path / "run"
    assert read_losses(run) == {
        step: loss for step, loss in read_losses(finished).items() if step > 4
    }
    assert equal_tensors(read_weights(run / "hf"), read_weights(finished / "hf"))


@pytest.mark.covers_option("checkpoint.exclude_from_loading")
def test_excluded_parts_of_another_run_start_afresh(train_here, flags, tmp_path, finished):
    start = {"checkpoint.initial_load_path": finished / "checkpoint/step-4"}

    def run(name: str, **options) -> Path:
        train_here(
            flags(**WITHOUT_SAMPLE, **start, **options, **{"job.dump_folder": tmp_path / name})
        )
        return tmp_path / name

    everything = "optimizer,lr_scheduler,dataloader,train_state"
    nothing = run("nothing", **EVERYTHING, **{"checkpoint.exclude_from_loading": everything})
    assert read_losses(nothing) == read_losses(run("weights"))
    fresh = run("optimizer", **EVERYTHING, **{"checkpoint.exclude_from_loading": "optimizer"})
    # the same step and rows, another update
    assert read_losses(fresh)[5] == read_losses(finished)[5]
    assert read_losses(fresh)[6] != read_losses(finished)[6]
    fresh = run("data", **EVERYTHING, **{"checkpoint.exclude_from_loading": "dataloader"})
    assert list(read_losses(fresh)) == [5, 6, 7, 8]
    assert read_losses(fresh)[5] != read_losses(finished)[5]


def test_parts_are_excluded_from_a_named_checkpoint_and_not_at_every_start(
    train_here, flags, finished
):
    before = read_losses(finished)
    own = {"job.dump_folder": finished, "checkpoint.exclude_from_loading": "optimizer"}
    train_here(flags(**WITHOUT_SAMPLE, **own, **{"checkpoint.load_step": 4}))
    assert read_losses(finished)[5] == before[5] and read_losses(finished)[6] != before[6]
    with pytest.raises(ConfigError, match="also a restart after an interruption"):
        train_here(flags(**WITHOUT_SAMPLE, **own))


def test_what_a_run_cannot_start_from_is_refused(train_here, flags, tmp_path, finished, tiny_model):
    def refused(source: object, **options) -> str:
        with pytest.raises(UserError) as raised:
            start = {"checkpoint.initial_load_path": source}
            train_here(flags(**{**WITHOUT_SAMPLE, **start, **options}))
        return str(raised.value)

    wider = tmp_path / "wider.json"
    wider.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"intermediate_size": 96}))
    message = refused(finished / "hf", **{"model.config": wider})
    assert "intermediate_size" in message and "96" in message
    deeper = tmp_path / "deeper.json"
    deeper.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"num_hidden_layers": 3}))
    message = refused(finished / "hf", **{"model.config": deeper})
    assert "num_hidden_layers" in message
    (tmp_path / "empty").mkdir()
    assert "contains no safetensors" in refused(tmp_path / "empty")
    assert "cannot be loaded from the Hub" in refused("nobody/nothing")
    assert "is not a full checkpoint" in refused(finished / "hf", **EVERYTHING)
    assert "nothing is left of training.steps = 8" in refused(
        finished / "checkpoint/step-8", **EVERYTHING
    )
    damaged = shutil.copytree(finished / "checkpoint/step-4", tmp_path / "damaged")
    (damaged / "data.json").write_text("{}")
    assert "is damaged: data.json" in refused(damaged)


@pytest.mark.covers_option("checkpoint.load_step")
def test_loading_a_step_that_was_not_saved_is_refused(train_here, flags):
    train_here(flags())
    with pytest.raises(UserError, match="step 5") as raised:
        train_here(flags(**{"checkpoint.load_step": 5}))
    assert "4, 8" in str(raised.value)
