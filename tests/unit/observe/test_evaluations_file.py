"""evaluations.jsonl: what was evaluated is read back as it was, whatever happens to the file."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from flame_accel.observe.evaluations_file import (
    Evaluation,
    EvaluationsFile,
    delete_evaluations_after,
    read_evaluations,
)
from tests.helpers.faulty_files import faulty_files

WIKI = Evaluation(
    step=10,
    tokens=1000,
    kind="set",
    name="wiki",
    metrics={"loss": 2.5, "perplexity": math.inf},
    by_position={"edges": [0, 128, 256], "loss": [3.0, math.nan]},
    samples=[{"prompt": "Once", "text": "nan"}],
    details={"rows": 4, "worst": [math.inf]},
)
MQAR = Evaluation(step=10, tokens=1000, kind="probe", name="mqar", metrics={"accuracy": 1})
DAMAGED = {
    "torn": b'{"step": 2, "to\n',
    "no name": b'{"step": 2, "tokens": 1, "kind": "set", "metrics": {}}\n',
    "unknown kind": b'{"step": 2, "tokens": 1, "kind": "x", "name": "a", "metrics": {}}\n',
    "metric is a word": (
        b'{"step": 2, "tokens": 1, "kind": "set", "name": "a", "metrics": {"loss": "low"}}\n'
    ),
    "metrics are a list": b'{"step": 2, "tokens": 1, "kind": "set", "name": "a", "metrics": [1]}\n',
    "sample without text": (
        b'{"step": 2, "tokens": 1, "kind": "set", "name": "a", "metrics": {}, '
        b'"samples": [{"prompt": "x"}]}\n'
    ),
}


def test_an_evaluation_is_read_back_as_it_was_written(tmp_path: Path):
    file = EvaluationsFile(tmp_path)
    for evaluation in (WIKI, MQAR):
        file.append(evaluation)
    expected = replace(WIKI, details={"rows": 4, "worst": ["inf"]})
    assert str(read_evaluations(tmp_path)) == str([expected, replace(MQAR, samples=[])])


def test_lines_have_the_agreed_form(tmp_path: Path):
    file = EvaluationsFile(tmp_path)
    file.append(WIKI)
    file.append(MQAR)
    first, second = (
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        for line in file.path.read_text().splitlines()
    )
    assert first == {
        "step": 10,
        "tokens": 1000,
        "kind": "set",
        "name": "wiki",
        "metrics": {"loss": 2.5, "perplexity": "inf"},
        "by_position": {"edges": [0, 128, 256], "loss": [3.0, "nan"]},
        "samples": [{"prompt": "Once", "text": "nan"}],
        "details": {"rows": 4, "worst": ["inf"]},
    }
    assert set(second) == {"step", "tokens", "kind", "name", "metrics"}


def test_a_record_of_the_same_step_kind_and_name_replaces_the_earlier_one(tmp_path: Path):
    file = EvaluationsFile(tmp_path)
    other_kind, later = replace(WIKI, kind="lm_eval"), replace(WIKI, step=20)
    again = replace(WIKI, metrics={"loss": 2.0})
    for evaluation in (WIKI, other_kind, later, again):
        file.append(evaluation)
    read = read_evaluations(tmp_path)
    assert [(r.step, r.kind, r.metrics["loss"]) for r in read] == [
        (10, "lm_eval", 2.5),
        (20, "set", 2.5),
        (10, "set", 2.0),
    ]


def test_without_a_file_there_are_no_evaluations(tmp_path: Path):
    assert read_evaluations(tmp_path) == []
    delete_evaluations_after(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_evaluations_of_later_steps_and_a_torn_line_are_deleted(tmp_path: Path):
    file = EvaluationsFile(tmp_path)
    file.append(MQAR)
    kept = file.path.read_bytes()
    file.append(replace(MQAR, step=11))
    with file.path.open("ab") as stream:
        stream.write(b'{"step": 10, "tok')
    assert [record.step for record in read_evaluations(tmp_path)] == [10, 11]
    delete_evaluations_after(tmp_path, 10)
    assert file.path.read_bytes() == kept
    file.append(replace(MQAR, step=12))
    file.go_back(10)
    assert file.path.read_bytes() == kept


@pytest.mark.parametrize("line", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_line_costs_no_other_and_is_kept_aside(
    tmp_path: Path, line: bytes, log: pytest.LogCaptureFixture
):
    file = EvaluationsFile(tmp_path)
    file.append(MQAR)
    good = file.path.read_bytes()
    file.path.write_bytes(line + good)
    assert [record.name for record in read_evaluations(tmp_path)] == ["mqar"]
    assert "the first is line 1" in log.text
    delete_evaluations_after(tmp_path, 10)
    assert file.path.read_bytes() == good
    assert (tmp_path / "evaluations.jsonl.damaged-0").read_bytes() == line + good


def test_an_evaluation_that_cannot_be_written_is_written_later(tmp_path: Path):
    file = EvaluationsFile(tmp_path)
    with faulty_files(tmp_path, lambda _, text: text.startswith("write"), error=errno.ENOSPC):
        file.append(WIKI)
    file.append(MQAR)
    assert [record.name for record in read_evaluations(tmp_path)] == ["wiki", "mqar"]
