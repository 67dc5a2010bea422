"""When a run saves: every N steps, every N seconds, and always at its last step."""

import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from flame_accel.checkpoint import SaveSchedule, save_schedule
from flame_accel.config import CheckpointConfig
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.runs import WITHOUT_SAMPLE

ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"), num_processes=1)


# when


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_interval_in_seconds_ends_at_the_next_logged_step():
    config = CheckpointConfig(interval_type="seconds", interval=10)
    subject = SaveSchedule(ONE_PROCESS, config, total_steps=100, clock=(clock := Clock()))
    due = []
    for step in range(1, 101):
        clock.now += 3
        if subject.is_due_on_all_ranks(step, step_was_logged=step % 5 == 0):
            due.append(step)
    # every fifth step is logged, after 15 seconds each
    assert due == [*range(5, 101, 5)]
    subject = SaveSchedule(ONE_PROCESS, config, total_steps=100, clock=(clock := Clock()))
    due = []
    for step in range(1, 101):
        clock.now += 0.6
        if subject.is_due_on_all_ranks(step, step_was_logged=step % 5 == 0):
            due.append(step)
    assert due == [20, 40, 60, 80, 100]


@pytest.mark.covers_option("checkpoint.enable_checkpoint")
def test_the_last_step_is_always_saved_and_nothing_without_checkpoints():
    never = partial(SaveSchedule, ONE_PROCESS, total_steps=7, clock=Clock())
    for unit in ("step", "seconds"):
        subject = never(CheckpointConfig(interval_type=unit, interval=1000))
        assert [
            s for s in range(1, 8) if subject.is_due_on_all_ranks(s, step_was_logged=s == 3)
        ] == [7]
    subject = never(CheckpointConfig(enable_checkpoint=False, interval=1))
    assert not any(subject.is_due_on_all_ranks(step, step_was_logged=True) for step in range(1, 8))


@pytest.mark.parametrize("main_decides", [True, False])
def test_the_clock_of_the_main_process_decides_for_all(monkeypatch, main_decides):
    asked = []

    def gather(accelerator: SimpleNamespace, own: torch.Tensor) -> torch.Tensor:
        asked.append(bool(own))
        return torch.cat([torch.tensor([main_decides]).to(own), own])

    monkeypatch.setattr(save_schedule, "all_gather_concatenated", gather)
    config = CheckpointConfig(interval_type="seconds", interval=10)
    subject = SaveSchedule(ONE_PROCESS, config, total_steps=100, clock=(clock := Clock()))
    clock.now = 9.99 if main_decides else 10.0
    # ranks exchange nothing where nothing is logged
    assert not subject.is_due_on_all_ranks(1, step_was_logged=False) and asked == []
    assert subject.is_due_on_all_ranks(2, step_was_logged=True) is main_decides
    assert asked == [not main_decides]


@pytest.mark.covers_option("checkpoint.interval_type")
def test_a_run_saves_by_the_clock(train_here, flags, tmp_path, monkeypatch):
    from flame_accel import train

    ticks = itertools.count()
    monkeypatch.setattr(train, "SaveSchedule", partial(SaveSchedule, clock=lambda: next(ticks)))
    options = {"checkpoint.interval_type": "seconds", "checkpoint.interval": 2}
    train_here(flags(**WITHOUT_SAMPLE, **options, **{"metrics.log_freq": 2}))
    # a second passes with each logged step: 1, 2, 4, 6, 8
    assert list_checkpoints(tmp_path / "run") == ["step-2", "step-6", "step-8"]
