"""Which checkpoint or model a run starts from, and what it cannot start from."""

import shutil

import pytest

from flame_accel.checkpoint import warn_about_unused_weights
from flame_accel.config import UserError
from flame_accel.observe import get_logger
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.runs import WITHOUT_SAMPLE, read_log, read_losses

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


@pytest.mark.covers_option("checkpoint.load_step")
def test_loading_a_step_that_was_not_saved_is_refused(train_here, flags):
    train_here(flags())
    with pytest.raises(UserError, match="step 5") as raised:
        train_here(flags(**{"checkpoint.load_step": 5}))
    assert "4, 8" in str(raised.value)


def test_only_an_intact_checkpoint_or_model_is_started_from(train_here, flags, tmp_path, finished):
    (tmp_path / "empty").mkdir()
    damaged = shutil.copytree(finished / "checkpoint/step-4", tmp_path / "damaged")
    (damaged / "data.json").write_text("{}")
    problems = {
        tmp_path / "empty": "contains no safetensors",
        "nobody/nothing": "cannot be loaded from the Hub",
        damaged: "is damaged: data.json",
    }
    for source, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            train_here(flags(**WITHOUT_SAMPLE, **{"checkpoint.initial_load_path": source}))


def test_weights_next_to_the_config_that_are_not_loaded_are_logged(tmp_path, monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(get_logger(), "warning", lambda text, *values: logged.append(text % values))
    (tmp_path / "config.json").write_text("{}")
    warn_about_unused_weights(str(tmp_path))
    warn_about_unused_weights("org/model")
    assert logged == []
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        warn_about_unused_weights(name)
        assert f"--checkpoint.initial_load_path {tmp_path}" in logged.pop()
