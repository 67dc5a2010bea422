"""metrics.jsonl: valid JSON whatever the values are, read back as the same numbers."""

import errno
import json
import math
from pathlib import Path

import pytest

from flame_accel.observe.metrics_file import (
    MetricsFile,
    delete_records_after,
    non_finite_to_strings,
    read_records,
)
from tests.helpers.faulty_files import faulty_files

DAMAGED = {
    "torn in the middle": b'{"step": 2, "train/lo\n',
    "no UTF-8": b'{"step": 2, "train/loss\xff": 1}\n',
    "no object": b"[2]}\n",
    "no step": b'{"train/loss": 1}\n',
    "step is a word": b'{"step": "two"}\n',
    "value is a word": b'{"step": 2, "train/loss": "low"}\n',
    "value is a list": b'{"step": 2, "train/loss": [1]}\n',
    "nested too deeply": b'{"step": 2, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "zeros": bytes(4096) + b"\n",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=list(DAMAGED))
def test_good_records_stay_and_a_damaged_file_is_kept_aside(
    tmp_path: Path, line: bytes, log: pytest.LogCaptureFixture
):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + line + b'{"step": 3, "train/loss": "nan"}\n{"step": 4}\n'
    path.write_bytes(content)
    assert [record["step"] for record in read_records(path)] == [1, 3, 4]
    assert path.read_bytes() == content and "the first is line 2" in log.text
    delete_records_after(path, 3)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3, "train/loss": "nan"}\n'
    assert (tmp_path / "metrics.jsonl.damaged-0").read_bytes() == content
    assert "1 damaged lines are passed over" in log.text and "metrics.jsonl.damaged-0" in log.text
    path.write_bytes(content)
    delete_records_after(path, 0)
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == content and not path.read_bytes()


@pytest.mark.parametrize("call", ["open", "write"])
def test_records_that_cannot_be_written_are_written_later(
    tmp_path: Path, log: pytest.LogCaptureFixture, call: str
):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1})
    with faulty_files(tmp_path, lambda _, text: text.startswith(call), error=errno.ENOSPC):
        file.append({"step": 2})
        file.append({"step": 3})
    assert path.read_text() == '{"step": 1}\n'
    file.append({"step": 4})
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4]
    assert log.text.count("No space left on device") == 1
    assert "is written again, with 2 earlier records" in log.text


def test_records_after_the_checkpoint_are_dropped_and_so_is_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "train/lo')
    delete_records_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n"])
def test_an_editor_may_have_changed_the_ends_of_lines(tmp_path: Path, end: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}' + (end or b"\n") + b'{"step": 2}' + end)
    assert read_records(path) == [{"step": 1}, {"step": 2}]
    delete_records_after(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_records_are_valid_json_whatever_the_loss_is():
    values = non_finite_to_strings(
        {"step": 1, "train/loss": math.nan, "optimizer/grad_norm": math.inf}
    )
    assert json.dumps(values, allow_nan=False)
    assert values == {"step": 1, "train/loss": "nan", "optimizer/grad_norm": "inf"}


def test_records_are_read_back_as_the_numbers_that_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [
        {"step": 1, "train/loss": 2.5, "optimizer/grad_norm": math.inf},
        {"step": 2, "train/loss": -math.inf, "optimizer/grad_norm": math.nan},
    ]
    file = MetricsFile(path)
    for record in records:
        file.append(record)
    assert str(read_records(path)) == str(records)


def test_a_record_that_is_being_written_is_not_read_yet(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "train/lo')
    assert read_records(path) == [{"step": 1}]
