"""metrics.jsonl: valid JSON whatever the values are, read back as the same numbers."""

import json
import math

from flame_accel.observe.metrics_file import (
    append_record,
    delete_records_after,
    non_finite_to_strings,
    read_records,
)


def test_records_after_the_checkpoint_are_dropped_and_so_is_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "train/lo')
    delete_records_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


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
    for record in records:
        append_record(path, record)
    assert str(read_records(path)) == str(records)


def test_a_record_that_is_being_written_is_not_read_yet(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "train/lo')
    assert read_records(path) == [{"step": 1}]
