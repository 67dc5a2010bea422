"""The meter: what a window of steps says, and what of it survives a restart."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from flame_accel.config import UserError
from flame_accel.observe import Meter
from flame_accel.observe.meter import window_state_for_rank
from flame_accel.training import StepResult
from tests.helpers.runs import read_records

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
    subject.add_step(step(10.0, 2), tokens=8)
    subject.add_step(step(90.0, 30), tokens=8)
    clock.now += 4
    record = subject.finish_window(lr=0.5)
    assert record["train/loss"] == 100 / 32
    assert record["train/max_loss"] == 5.0
    assert record["throughput/tokens_per_second"] == 4.0
    assert record["time/step_seconds"] == 2.0
    assert "throughput/tflops_per_device" not in record
    # and a new window begins
    subject.add_step(step(3.0, 3), tokens=8)
    clock.now += 1
    assert subject.finish_window(lr=0.5)["train/loss"] == 1.0


def test_time_spent_elsewhere_is_not_the_steps():
    subject = meter(clock := Clock())
    with subject.waiting_for_data():
        clock.now += 1
    subject.add_step(step(1.0, 1), tokens=10)
    with subject.throughput_paused():
        clock.now += 50
    clock.now += 1
    record = subject.finish_window(lr=0.1)
    assert record["time/data_seconds"] == 1.0
    assert record["throughput/tokens_per_second"] == 5.0


def test_a_share_of_the_peak_is_claimed_only_where_both_are_known():
    for peak in (None, 100.0):
        subject = meter(clock := Clock(), flops_per_token=5.0, device_peak_flops=peak)
        subject.add_step(step(1.0, 1), tokens=10)
        clock.now += 1
        record = subject.finish_window(lr=0.1)
        assert record["throughput/tflops_per_device"] == 50 / 1e12
        assert record.get("throughput/mfu") == (None if peak is None else 0.5)


def test_an_open_window_survives_a_restart():
    first = meter(Clock())
    first.add_step(step(10.0, 2), tokens=8)
    state = json.loads(json.dumps(first.losses_and_skips()))
    second = meter(clock := Clock(), states=[state])
    second.add_step(step(90.0, 30), tokens=8)
    clock.now += 1
    record = second.finish_window(lr=0.5)
    assert (record["train/loss"], record["train/max_loss"]) == (100 / 32, 5.0)


def test_skips_are_counted_and_only_those_in_a_row_stop_a_run():
    subject = meter(clock := Clock())
    for norm in (math.nan, 1.0, math.inf, math.nan):
        subject.add_step(step(1.0, 1, norm=norm), tokens=1)
    clock.now += 1
    assert subject.finish_window(lr=0.1)["optimizer/skipped_steps"] == 3
    assert subject.sync_and_count_consecutive_skips() == 2


# other numbers of ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_an_open_window_is_whole_among_any_number_of_ranks(ranks):
    saved = [
        {"sums": [1.5, 2.0, 3.0, 1.0], "max_loss": 2.5},
        {"sums": [2.5, 4.0, 3.0, 1.0], "max_loss": None},
        {"sums": [4.0, 8.0, 3.0, 1.0], "max_loss": 7.0},
    ]
    shares = [window_state_for_rank(saved, dp_rank=rank, dp_size=ranks) for rank in range(ranks)]
    nats, targets, skipped, in_a_row = zip(*(share["sums"] for share in shares), strict=True)
    assert (sum(nats), sum(targets)) == (8.0, 14.0)
    assert {*skipped, *in_a_row} == {3.0, 1.0}
    assert max(share["max_loss"] for share in shares if share["max_loss"] is not None) == 7.0
    if ranks == len(saved):
        assert shares == saved


@pytest.mark.covers_option("training.max_consecutive_skips")
def test_a_run_whose_updates_are_all_skipped_stops(train_here, flags, monkeypatch, tmp_path):
    from flame_accel import train

    compute = train.train_step

    def spoil(accelerator, model, optimizer, micro_batches, **options):
        hook = model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
        result = compute(accelerator, model, optimizer, micro_batches, **options)
        hook.remove()
        return result

    monkeypatch.setattr(train, "train_step", spoil)
    with pytest.raises(UserError, match="not finite"):
        train_here(flags(**{"training.max_consecutive_skips": 3}))
    assert [record["step"] for record in read_records(tmp_path / "run")] == [1, 2, 3]
