"""docs/validation.md: its command runs, and its run file, metric and record are real ones."""

import json
import re
import shlex
from pathlib import Path

import pytest

from flame_accel.config.evaluation_sets import evaluation_sets
from flame_accel.evaluation.metric_modules import MetricModule
from flame_accel.observe.evaluations_file import EVALUATIONS_FILE, read_evaluations
from tests.helpers.run_files import parsed, write
from tests.helpers.runs import ROOT, read_records

PAGE = (ROOT / "docs/validation.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    [text] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return text


def test_the_command_trains_and_evaluates(
    train_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    words = shlex.split(block("bash").replace("\\\n", " "))
    assert words[:2] == ["flame-accel", "train"]
    small = [
        "--training.steps=1",
        "--training.warmup_steps=0",
        "--training.seq_len=64",
        "--training.batch_size=2",
    ]
    less = ["--evaluation.max_tokens=4000", "--evaluation.sample_tokens=0"]
    train_here([*words[2:], *small, *less, f"--job.dump_folder={tmp_path / 'run'}"])
    found = read_evaluations(tmp_path / "run")
    assert [(each.kind, each.name) for each in found] == [
        ("set", "validation"),
        ("set", "docs"),
        ("probe", "needle"),
    ]
    assert found[1].by_position["edges"][-1] > 1024
    [record] = read_records(tmp_path / "run")
    assert {"eval/loss", "eval/docs/loss", "eval/needle/answer_accuracy"} <= record.keys()
    assert (tmp_path / "run/checkpoint/best/model.safetensors").is_file()


def test_the_run_file_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my_data").mkdir()
    Path("my_data/code.jsonl").write_text('{"text": "a"}\n')
    config = parsed(write(tmp_path / "run.toml", block("toml")))
    assert [each.name for each in evaluation_sets(config.evaluation)] == [
        *("validation", "wiki", "code", "mqar"),
    ]


def test_the_metric_gives_what_it_says(tmp_path: Path):
    module = MetricModule(str(write(tmp_path / "bits_per_token.py", block("python"))))
    figures = module.compute({"nats": [0.6931471805599453, 0.0], "targets": [1, 1]})
    assert figures == {"bits_per_token": pytest.approx(0.5)}


def test_the_record_is_one_that_is_read(tmp_path: Path):
    write(tmp_path / EVALUATIONS_FILE, json.dumps(json.loads(block("json"))) + "\n")
    [found] = read_evaluations(tmp_path)
    assert found.name == "docs" and found.samples and found.by_position["edges"] == [0, 32, 64]
