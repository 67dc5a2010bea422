"""Laws of resume: a run that is interrupted, killed or damaged ends with the same bits."""

import json
import shutil
from typing import Any

import pytest

from flame_accel.config import UserError
from tests.helpers.checkpoints import undo_checkpoint
from tests.helpers.runs import (
    WITHOUT_SAMPLE,
    file_digests,
    kill_after,
    launch,
    model_digests,
    read_log,
    read_losses,
    read_records,
)


@pytest.mark.covers_option("job.dump_folder")
def test_a_crash_and_a_second_start_change_no_bit(train_here, flags, tmp_path, monkeypatch):
    whole = flags(**{"job.dump_folder": tmp_path / "whole"})
    broken = flags(**{"job.dump_folder": tmp_path / "broken"})
    # a window of several steps is open at the checkpoint: its sums have to survive
    for argv in (whole, broken):
        argv.append("--metrics.log_freq=3")
    train_here(whole)

    from flame_accel.observe import MetricLogger

    write = MetricLogger.log_and_write_record

    def crash_at_6(self: MetricLogger, record: dict[str, float], **options: Any) -> None:
        if record["step"] == 6:
            raise KeyboardInterrupt
        write(self, record, **options)

    monkeypatch.setattr(MetricLogger, "log_and_write_record", crash_at_6)
    with pytest.raises(KeyboardInterrupt):
        train_here(broken)
    monkeypatch.undo()
    train_here(broken)
    assert "continuing after step 4" in (tmp_path / "broken" / "log.txt").read_text()
    assert read_losses(tmp_path / "broken") == read_losses(tmp_path / "whole")
    assert model_digests(tmp_path / "broken/hf") == model_digests(tmp_path / "whole/hf")


def test_a_killed_run_started_again_equals_one_left_alone(flags, tmp_path, corpus):
    options = {"training.steps": 16, "training.num_workers": 1, "evaluation.sample_tokens": 0}
    alone = flags(**options, **{"job.dump_folder": tmp_path / "alone"})
    killed = flags(**options, **{"job.dump_folder": tmp_path / "killed"})
    launch(alone, config="cpu", processes=1)
    kill_after(killed, tmp_path / "killed", step=6)
    assert not (tmp_path / "killed/hf").exists()
    launch(killed, config="cpu", processes=1)
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "alone")
    assert model_digests(tmp_path / "killed/hf") == model_digests(tmp_path / "alone/hf")


def test_a_run_killed_during_its_export_exports_the_same(train_here, flags, tmp_path):
    train_here(flags())
    (tmp_path / "run/ended.json").unlink()
    before = file_digests(tmp_path / "run/hf"), read_records(tmp_path / "run")
    train_here(flags())
    assert (file_digests(tmp_path / "run/hf"), read_records(tmp_path / "run")) == before


def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_resumed(train_here, flags, tmp_path):
    train_here(flags())
    expected = model_digests(tmp_path / "run/hf")
    weights = tmp_path / "run/checkpoint/step-8/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (tmp_path / "run/ended.json").unlink()
    train_here(flags())
    names = sorted(path.name for path in (tmp_path / "run/checkpoint").iterdir())
    assert names == ["step-4", "step-8", "step-8.damaged-0"]
    assert "continuing after step 4" in (tmp_path / "run/log.txt").read_text()
    assert model_digests(tmp_path / "run/hf") == expected


def test_another_stream_does_not_resume(train_here, flags):
    train_here(flags())
    with pytest.raises(UserError, match=r"training\.seed"):
        train_here(flags(**{"training.seed": 7, "training.steps": 10}))


def test_tied_weights_survive_a_restart_and_the_export(train_here, flags, tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tied.json"
    path.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"tie_word_embeddings": True}))
    train_here(flags(**{"model.config": path}))
    expected = model_digests(tmp_path / "run/hf")
    undo_checkpoint(tmp_path / "run/checkpoint/step-8")
    train_here(flags(**{"model.config": path}))
    assert model_digests(tmp_path / "run/hf") == expected
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/hf")
    assert model.lm_head.weight is model.model.embeddings.weight


@pytest.mark.distributed
def test_a_seed_checkpoint_and_an_open_window_resume_on_other_numbers_of_ranks(
    train_here, flags, tmp_path, finished
):
    seed = {
        "checkpoint.initial_load_path": finished / "hf",
        "checkpoint.create_seed_checkpoint": True,
    }
    two, one = tmp_path / "run", tmp_path / "one"
    # records of steps 1, 3, 6, 8: a window is open at step 4
    rows = {**WITHOUT_SAMPLE, "metrics.log_freq": 3, "training.gradient_accumulation_steps": 2}
    train_here(flags(**rows, **seed))
    shutil.copytree(two, one)
    train_here(flags(**rows, **{"job.dump_folder": one, "checkpoint.load_step": 0}))
    halves = {**rows, "training.gradient_accumulation_steps": 1, "checkpoint.load_step": 0}
    launch(flags(**halves), config="ddp", processes=2)
    assert read_losses(two) == pytest.approx(read_losses(one), rel=1e-5)
    undo_checkpoint(two / "checkpoint/step-8")
    train_here(flags(**rows))
    assert "continuing after step 4" in read_log(two)
    assert read_losses(two) == pytest.approx(read_losses(one), rel=1e-5)
