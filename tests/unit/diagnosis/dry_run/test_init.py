"""`job.dry_run` says what a run would be, and leaves no trace."""

import json
from pathlib import Path
from typing import Any

import pytest

from flame_accel.config import UserError
from tests.helpers.runs import file_digests


def printed(train_here: Any, capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    train_here(argv)
    return capsys.readouterr().out


@pytest.mark.covers_option("job.dry_run", "job.dry_run_gpu", "job.gpu_hour_price")
def test_people_read_what_a_run_would_be(train_here, flags, tmp_path, capsys):
    options = {"job.dry_run": True, "job.dry_run_gpu": "NVIDIA H200", "job.gpu_hour_price": 2.5}
    seven = tmp_path / "7B.json"
    fields = {"model_type": "gla", "hidden_size": 4096, "num_hidden_layers": 32, "num_heads": 4}
    seven.write_text(json.dumps(fields))
    accumulation = {"training.gradient_accumulation_steps": 4, "training.batch_size": 1}
    text = printed(train_here, capsys, flags(**options, **accumulation, **{"model.config": seven}))
    for part in ("gpu_hour_price = 2.5", "parameters of gla", "feed-forward", "256 tokens a step"):
        assert part in text
    assert "FLOPs of a token" in text and "learning rate" in text and "*" in text
    weights = next(line for line in text.splitlines() if "weights, fp32" in line)
    assert weights.endswith("GiB")
    assert "This machine has no GPU" not in text
    assert "CUDA context" in text and "GiB of 139.8" in text
    assert "largest micro-batch that fits" in text
    assert "same step in fewer passes: --training.batch_size 4 --training.gradient_acc" in text
    assert "at 2.50 an hour" in text
    assert "lane 0:" in text and "targets" in text
    assert not (tmp_path / "run").exists()


def test_a_small_model_on_a_machine_without_a_gpu(train_here, flags, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = {"job.dry_run": True, "metrics.log_freq": 3}
    text = printed(train_here, capsys, flags(**options))
    listed = text.partition("parameters of gla")[0]
    assert "log_freq = 3" in listed and "beta2" not in listed and "--job.print_args" in listed
    assert "This machine has no GPU: memory and time are those of NVIDIA" in text
    weights = next(line for line in text.splitlines() if "weights, fp32" in line)
    assert weights.endswith("MiB") and "0.00 GiB" not in text
    everything = printed(train_here, capsys, flags(**options, **{"job.print_args": True}))
    assert "beta2 = 0.95" in everything.partition("parameters of gla")[0]


@pytest.mark.covers_option("job.dry_run_format")
def test_programs_read_one_object(train_here, flags, tmp_path, capsys):
    options = {"job.dry_run": True, "job.dry_run_format": "json"}
    plan = json.loads(printed(train_here, capsys, flags(**options)))
    parts = dict(plan["parameters"])
    assert parts.pop("total") == sum(parts.values())
    assert plan["tokens_per_step"] == 4 * 64
    assert plan["tokens"] == 8 * plan["tokens_per_step"]
    assert [device["name"] for device in plan["devices"]]
    for device in plan["devices"]:
        sizes = device["estimated_bytes"]
        assert sizes.pop("total") == sum(sizes.values())
        assert device["largest_micro_batch_rows"] > 4
    assert plan["learning_rates"][0][0] == 0 and plan["learning_rates"][-1][0] == 7


def test_the_folder_of_a_run_stays_as_it_is(train_here, flags, tmp_path, capsys):
    run: Path = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("of another run, and not even TOML")
    before = file_digests(run)
    printed(train_here, capsys, flags(**{"job.dry_run": True}))
    assert file_digests(run) == before
    assert [path.name for path in run.iterdir()] == ["config.toml"]


def test_a_run_that_could_not_begin_is_refused_alike(train_here, flags, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError):
        train_here(flags(**{"job.dry_run": True, "training.dataset": empty}))


def test_only_the_first_process_prints(train_here, flags, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    from flame_accel import train
    from flame_accel.config import parse
    from flame_accel.stop_signals import StopSignals

    capsys.readouterr()
    train.main(parse(flags(**{"job.dry_run": True})), StopSignals())
    assert capsys.readouterr().out == ""
