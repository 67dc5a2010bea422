"""Run folders in any state can be read, and what cannot be read is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flame_accel.observe.report.page import render_page
from flame_accel.observe.report.read_runs import read_run, read_runs
from flame_accel.observe.report.tables import list_figures


def test_an_empty_folder_is_a_run_without_records(tmp_path: Path):
    run = read_run(tmp_path)
    assert (run.name, run.records, run.problems) == (tmp_path.name, [], [])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", b'{"step": 1, "a": 1.0}\n\xff\xfe\n{"step": 2'),
        ("metrics.jsonl", b'{"step": 9, "a": 1e999}\n{"step": 2, "a": 1' + b"0" * 400 + b"}\n"),
        ("metrics.jsonl", b'{"step": 1, "a": []}\n{"step": "x"}\n[]\n'),
        ("evaluations.jsonl", b'{"step": 1}\nnothing\n'),
        ("skipped.jsonl", b'{"step": 1, "reason": 5}\n{"step": 2, "lanes": '),
        ("environment.json", b'{"starts": 5, "packages": 7, "git": []}'),
        ("environment.json", b'{"starts": [{"step": 1, "changed_options": [1]}]}'),
        ("environment.json", b"\x00"),
        ("config.toml", b"[[["),
        ("config.toml", b"\xff"),
        ("ended.json", b"[]"),
        ("ended.json", b'{"reason": 5, "step": "x", "what": {}}'),
    ],
)
def test_a_damaged_file_costs_what_is_in_it_and_no_more(tmp_path: Path, file: str, content: bytes):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    (tmp_path / file).write_bytes(content)
    page = render_page([read_run(tmp_path)], title="damaged")
    assert "<h1>damaged</h1>" in page
    assert file == "metrics.jsonl" or ">Loss</h3>" in page


def test_what_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "ended.json").write_text("{")
    assert read_run(tmp_path).problems == [
        "ended.json is not JSON (line 1: Expecting property name enclosed in double quotes)."
    ]


def test_records_are_in_the_order_of_their_steps(tmp_path: Path):
    lines = [json.dumps({"step": step}) for step in (3, 1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert [record["step"] for record in read_run(tmp_path).records] == [1, 2, 3]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path):
    folders = [tmp_path / "a/run", tmp_path / "b/run", tmp_path / "c"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run", "c"]


def test_parameters_are_those_of_the_exported_model(tmp_path: Path):
    assert read_run(tmp_path).num_parameters is None
    (tmp_path / "hf").mkdir()
    weights = tmp_path / "hf/model.safetensors"
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, weights)
    run = read_run(tmp_path)
    assert run.num_parameters == 17
    assert {row.name: row.cells for row in list_figures([run])}["parameters"] == ["17"]
    weights.write_bytes(b"no header")
    damaged = read_run(tmp_path)
    assert damaged.num_parameters is None and "hf/model.safetensors" in damaged.problems[0]
