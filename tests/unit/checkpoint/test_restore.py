"""What a run loads where it starts: weights alone, everything, or without the excluded parts."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from flame_accel.config import ConfigError, UserError
from tests.helpers.checkpoints import equal_tensors, read_weights
from tests.helpers.runs import WITHOUT_SAMPLE, read_losses


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


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        ("hf", {"model.config": {"intermediate_size": 96}}, "intermediate_size.* 96"),
        ("hf", {"model.config": {"num_hidden_layers": 3}}, "num_hidden_layers"),
        ("hf", EVERYTHING, "is not a full checkpoint"),
        ("checkpoint/step-8", EVERYTHING, "nothing is left of training.steps = 8"),
    ],
)
def test_what_another_run_saved_is_refused_where_it_does_not_fit(
    train_here, flags, tmp_path, finished, tiny_model, source, options, problem
):
    if "model.config" in options:
        other = json.loads(tiny_model.read_text()) | options["model.config"]
        (tmp_path / "other.json").write_text(json.dumps(other))
        options = {"model.config": tmp_path / "other.json"}
    start = {"checkpoint.initial_load_path": finished / source}
    with pytest.raises(UserError, match=problem):
        train_here(flags(**WITHOUT_SAMPLE, **start, **options))


def test_a_run_that_has_nothing_left_to_train_says_so_and_exports(
    finished, train_here, flags, capsys
):
    # as if it had been killed while it exported
    (finished / "ended.json").unlink()
    options = {**WITHOUT_SAMPLE, "job.dump_folder": finished, "training.steps": 7}
    train_here(flags(**options))
    assert "nothing is left to train (training.steps = 7): the model of step 8 is exported" in (
        capsys.readouterr().out
    )
    assert json.loads((finished / "ended.json").read_text())["step"] == 8
    assert equal_tensors(
        read_weights(finished / "hf"), read_weights(finished / "checkpoint/step-8")
    )
