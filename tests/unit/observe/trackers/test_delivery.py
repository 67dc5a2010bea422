"""A tracker's store equals metrics.jsonl at the end, whatever the tracker and the run have done."""

import errno
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flame_accel.observe import step_records
from flame_accel.observe.evaluations_file import Sample
from flame_accel.observe.metrics_file import MetricsFile
from flame_accel.observe.trackers import RunDescription, TrackerIdentities, delivery
from flame_accel.observe.trackers.delivery import TrackerDelivery
from flame_accel.observe.trackers.tracker_run import Record, TrackerRun

SECONDS = 20


class StoredRun(TrackerRun):
    """A tracker that keeps records in `stored`, across processes, and can take steps back."""

    def __init__(self, stored: list[Record], folder: Path) -> None:
        description = RunDescription(
            project="project", name="run", options={}, run_folder=folder, tensorboard_folder=folder
        )
        super().__init__("stored", description, TrackerIdentities(folder))
        self.stored = stored
        self.failures: list[type[BaseException]] = []
        """Raised by the next calls, the last one first."""
        self.always_fails = False
        self.may_log = threading.Event()
        self.may_log.set()

    def open(self, records: Sequence[Record], last_valid_step: int) -> int:
        self._fail_if_planned()
        self.stored[:] = [each for each in self.stored if each["step"] <= last_valid_step]
        count = len(self.stored)
        assert [each["step"] for each in self.stored] == [each["step"] for each in records[:count]]
        return count

    def log(self, record: Record, samples: Sequence[Sample] = ()) -> None:
        assert self.may_log.wait(SECONDS)
        self._fail_if_planned()
        self.stored.append(dict(record))

    def close(self) -> None:
        if not self.always_fails:
            self._fail_if_planned()

    def _fail_if_planned(self) -> None:
        if self.always_fails:
            raise OSError("always")
        if self.failures:
            raise self.failures.pop()("planned")


class Bench:
    """A metrics.jsonl and a tracker behind a delivery, as a run has them."""

    def __init__(self, folder: Path) -> None:
        self.file = MetricsFile(folder / "metrics.jsonl")
        self.stored: list[Record] = []
        self.truth: list[Record] = []
        self.folder = folder
        self.start(0)

    def start(self, step: int) -> None:
        """A process that resumes after a step."""
        self.file.go_back(step)
        self.truth = [each for each in self.truth if each["step"] <= step]
        self.run = StoredRun(self.stored, self.folder)
        self.delivery = TrackerDelivery(self.run, self.file.path, step=step)
        self.delivery.start()

    def record(self, value: float) -> None:
        """A record of the next step."""
        record = {"step": len(self.truth) + 1, "train/loss": value}
        self.truth.append(record)
        self.file.append(record)
        self.delivery.add(record)

    def go_back(self, step: int) -> None:
        self.truth = self.truth[:step]
        self.file.go_back(step)
        self.delivery.go_back(step)

    def finish(self) -> None:
        self.delivery.close()
        assert self.delivery.join(SECONDS)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(delivery, "FIRST_RETRY_SECONDS", 0.001)
    return Bench(tmp_path)


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(30))
def test_the_store_is_the_truth_after_rewinds_kills_failures_and_lost_tails(
    bench: Bench, seed: int
):
    choose = random.Random(seed)
    for _ in range(40):
        event = choose.choices(["record", "rewind", "kill", "failure"], [6, 1, 1, 1])[0]
        if event == "record":
            bench.record(choose.random())
        elif event == "rewind":
            bench.go_back(choose.randint(0, len(bench.truth)))
        elif event == "failure":
            bench.run.failures.append(choose.choice([OSError, ValueError, SystemExit]))
        else:
            # what has arrived differs from time to time, and some of it is lost
            bench.finish()
            del bench.stored[choose.randint(0, len(bench.stored)) :]
            bench.start(choose.randint(0, len(bench.truth)))
        if choose.random() < 0.3:
            time.sleep(0.002)
    bench.run.failures.clear()
    bench.finish()
    assert bench.stored == bench.truth


def test_a_tracker_that_hangs_delays_no_record_and_takes_no_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(delivery, "MOST_PENDING", 10)
    bench.delivery = TrackerDelivery(bench.run, bench.file.path, step=0)
    bench.run.may_log.clear()
    bench.delivery.start()
    begin = time.monotonic()
    for number in range(500):
        bench.record(number)
    # a write to the file is all that each takes
    assert time.monotonic() - begin < SECONDS / 2
    assert len(bench.delivery._pending) <= 10
    bench.delivery.close()
    assert not bench.delivery.join(0.05)
    bench.run.may_log.set()
    assert bench.delivery.join(SECONDS)
    assert bench.stored == bench.truth


def test_records_that_wait_as_the_run_goes_back_are_not_sent(bench: Bench):
    bench.run.may_log.clear()
    for number in range(5):
        bench.record(number)
    bench.go_back(2)
    bench.run.may_log.set()
    bench.finish()
    assert bench.stored == bench.truth


def test_a_failure_is_logged_once_and_so_is_its_end(bench: Bench, log: pytest.LogCaptureFixture):
    wait_until(lambda: bench.delivery._is_open)
    bench.run.failures += [OSError] * 3
    bench.record(1)
    wait_until(lambda: bench.stored)
    bench.record(2)
    bench.finish()
    assert log.text.count("stored: OSError: planned") == 1
    assert log.text.count("stored: works again") == 1
    assert bench.stored == bench.truth and not bench.delivery.has_failed


def test_a_tracker_that_always_fails_ends_with_the_run(bench: Bench, log: pytest.LogCaptureFixture):
    bench.run.always_fails = True
    bench.record(1)
    bench.finish()
    assert bench.delivery.has_failed and bench.stored == []
    assert "works again" not in log.text


def test_records_arrive_where_metrics_jsonl_cannot_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(step_records, "_append_or_leave_unchanged", fail)
    for number in range(3):
        bench.record(number)
    bench.finish()
    assert not bench.file.path.exists()
    assert bench.stored == bench.truth
