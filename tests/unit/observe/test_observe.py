"""Records: what a window says, what survives a restart, what a page shows."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from flame_accel.config import UserError
from flame_accel.observe import Meter
from flame_accel.observe.console import format_record, format_seconds
from flame_accel.observe.metric_logger import (
    drop_records_after,
    flatten_options,
    non_finite_to_strings,
)
from flame_accel.observe.report import select_points, write_report
from flame_accel.training import StepResult

ONE_PROCESS = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, process_index=0, parallelism_config=None
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(loss_sum: float, targets: int, *, norm: float = 1.0) -> StepResult:
    return StepResult(
        loss_sum=torch.tensor(loss_sum),
        targets=targets,
        grad_norm=torch.tensor(norm),
        skipped=torch.tensor(0.0 if math.isfinite(norm) else 1.0),
    )


def meter(clock: Clock, **options) -> Meter:
    defaults = {"flops_per_token": None, "device_peak_flops": None}
    return Meter(ONE_PROCESS, clock=clock, **{**defaults, **options})


def test_the_loss_of_a_window_is_per_token_and_not_per_step():
    subject = meter(clock := Clock())
    subject.add(step(10.0, 2), tokens=8)
    subject.add(step(90.0, 30), tokens=8)
    clock.now += 4
    record = subject.finish_window(lr=0.5)
    assert record["train/loss"] == 100 / 32
    assert record["train/max_loss"] == 5.0
    assert record["throughput/tokens_per_second"] == 4.0
    assert record["time/step_seconds"] == 2.0
    assert "throughput/tflops_per_device" not in record
    # and a new window begins
    subject.add(step(3.0, 3), tokens=8)
    clock.now += 1
    assert subject.finish_window(lr=0.5)["train/loss"] == 1.0


def test_time_spent_elsewhere_is_not_the_steps():
    subject = meter(clock := Clock())
    with subject.waiting_for_data():
        clock.now += 1
    subject.add(step(1.0, 1), tokens=10)
    with subject.paused():
        clock.now += 50
    clock.now += 1
    record = subject.finish_window(lr=0.1)
    assert record["time/data_seconds"] == 1.0
    assert record["throughput/tokens_per_second"] == 5.0


def test_a_share_of_the_peak_is_claimed_only_where_both_are_known():
    for peak in (None, 100.0):
        subject = meter(clock := Clock(), flops_per_token=5.0, device_peak_flops=peak)
        subject.add(step(1.0, 1), tokens=10)
        clock.now += 1
        record = subject.finish_window(lr=0.1)
        assert record["throughput/tflops_per_device"] == 50 / 1e12
        assert record.get("throughput/mfu") == (None if peak is None else 0.5)


def test_an_open_window_survives_a_restart():
    first = meter(Clock())
    first.add(step(10.0, 2), tokens=8)
    state = json.loads(json.dumps(first.state_dict()))
    second = meter(clock := Clock(), states=[state])
    second.add(step(90.0, 30), tokens=8)
    clock.now += 1
    record = second.finish_window(lr=0.5)
    assert (record["train/loss"], record["train/max_loss"]) == (100 / 32, 5.0)


def test_skips_are_counted_and_only_those_in_a_row_stop_a_run():
    subject = meter(clock := Clock())
    for norm in (math.nan, 1.0, math.inf, math.nan):
        subject.add(step(1.0, 1, norm=norm), tokens=1)
    clock.now += 1
    assert subject.finish_window(lr=0.1)["optimizer/skipped_steps"] == 3
    subject.check_divergence(0)
    subject.check_divergence(3)
    with pytest.raises(UserError, match="last 2 updates"):
        subject.check_divergence(2)


def test_records_after_the_checkpoint_are_dropped_and_so_is_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "train/lo')
    drop_records_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_records_are_valid_json_whatever_the_loss_is():
    values = non_finite_to_strings(
        {"step": 1, "train/loss": math.nan, "optimizer/grad_norm": math.inf}
    )
    assert json.dumps(values, allow_nan=False)
    assert values == {"step": 1, "train/loss": "nan", "optimizer/grad_norm": "inf"}


def test_trackers_get_flat_plain_options():
    options = {"training": {"steps": 3, "dataset": None}, "model": {"custom": ("a", "b")}}
    assert flatten_options(options) == {
        "training.steps": 3,
        "training.dataset": "None",
        "model.custom": "('a', 'b')",
    }


def test_a_line_has_the_fields_in_order_and_the_time_left():
    record = {"optimizer/lr": 1e-3, "train/loss": 2.5, "step": 40, "time/step_seconds": 60.0}
    line = format_record(record, 160)
    assert line == "step  40/160  25%  loss 2.5000  lr 1.000e-03  ETA 2:00:00"
    assert format_seconds(59.6) == "0:01:00"


def test_the_report_is_one_page_that_needs_nothing_else(tmp_path):
    records = [{"step": i, "train/loss": 3 / i, "optimizer/lr": 0.1} for i in range(1, 9)]
    records[3]["train/loss"] = "nan"
    records[7]["eval/loss"] = 0.4
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text)
    page = write_report(tmp_path, title="<b>run", sample="a < b").read_text()
    assert page.count("<svg") == 2
    assert page.count("<polyline") == 3
    assert "<b>" not in page and "a &lt; b" in page
    assert "http" not in page and "<script" not in page
    assert len(select_points(records, "train/loss")) == 7
