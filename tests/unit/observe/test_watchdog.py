"""The watchdog: what counts as progress, how long a phase may take, and who is missing."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flame_accel.observe.signs_of_life import RankProgress
from flame_accel.observe.watchdog import (
    EXIT_CODE,
    LONG_PHASE_SECONDS,
    Watchdog,
    describe_missing_ranks,
)
from tests.helpers.runs import run_python

Build = Callable[..., Watchdog]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """`build(rank, ranks, seconds=..., timeout=...)`: a watchdog that nobody has started."""
    (tmp_path / "watchdog").mkdir()

    def build_watchdog(
        rank: int = 0, ranks: int = 1, *, seconds: float = 100, timeout: float = 1000
    ) -> Watchdog:
        return Watchdog(
            SimpleNamespace(process_index=rank, num_processes=ranks),
            tmp_path,
            watchdog_seconds=seconds,
            train_timeout_seconds=timeout,
            step=0,
        )

    return build_watchdog


def seconds_until_given_up(watchdog: Watchdog, most: float = 10_000) -> float:
    """Seconds of its own time without any progress."""
    seconds = 0.0
    while watchdog.check_progress() is None:
        seconds += watchdog.check_seconds
        assert seconds < most
    return seconds


@pytest.mark.covers_option("training.watchdog_seconds")
def test_a_run_without_progress_is_given_up_after_watchdog_seconds(build: Build) -> None:
    # training.watchdog_seconds
    watchdog = build()
    watchdog.enter("data", 2)
    assert 95 <= seconds_until_given_up(watchdog) <= 105
    assert not build(seconds=0).enabled


def test_every_phase_and_every_batch_is_progress(build: Build) -> None:
    watchdog = build()
    for step in range(2, 50):
        for phase in ("data", "update"):
            watchdog.enter(phase, step)
            assert [watchdog.check_progress() for _ in range(10)] == [None] * 10
    with watchdog.long_phase("evaluation"):
        for _ in range(200):
            watchdog.feed()
            assert [watchdog.check_progress() for _ in range(10)] == [None] * 10


def test_first_steps_and_long_phases_have_an_hour_less_a_margin(build: Build) -> None:
    watchdog = build()
    watchdog.enter("update", 1)
    assert seconds_until_given_up(watchdog) > LONG_PHASE_SECONDS - 10
    for phase in ("evaluation", "save", "export"):
        watchdog.enter("update", 2)
        watchdog.check_progress()
        with watchdog.long_phase(phase):
            assert seconds_until_given_up(watchdog) > LONG_PHASE_SECONDS - 10
    # and its time is no measure for the steps after it
    watchdog.check_progress()
    assert seconds_until_given_up(watchdog) <= 105


def test_slow_steps_raise_the_limit(build: Build) -> None:
    watchdog = build()
    watchdog.enter("update", 2)
    for _ in range(16):
        assert watchdog.check_progress() is None
    watchdog.enter("update", 3)
    watchdog.check_progress()
    assert 3 * 70 <= seconds_until_given_up(watchdog) <= 3 * 85


def test_a_record_may_wait_for_all_steps_since_the_last_one(build: Build) -> None:
    """The host runs ahead of the device, and waits for it where it writes a record."""
    watchdog = build()

    def take_window(first_step: int, wait: int) -> None:
        for step in range(first_step, first_step + 10):
            for phase in ("data", "update"):
                watchdog.enter(phase, step)
                assert watchdog.check_progress() is None
        watchdog.enter("record", first_step + 10)
        assert [watchdog.check_progress() for _ in range(wait)] == [None] * wait

    # 200 s of steps and 800 s of waiting, in checks of 5 s
    take_window(2, 160)
    take_window(12, 160)
    take_window(22, 530)
    assert seconds_until_given_up(watchdog) < 200
    # which is no measure for steps
    watchdog.enter("update", 33)
    watchdog.check_progress()
    assert 95 <= seconds_until_given_up(watchdog) <= 105


def test_several_ranks_give_up_before_collectives_do(build: Build) -> None:
    watchdog = build(0, 2, seconds=600, timeout=100)
    watchdog.enter("update", 2)
    # the last files are read and written three checks later
    assert seconds_until_given_up(watchdog) + 4 * watchdog.check_seconds < 100


def test_a_rank_that_shows_no_sign_of_life_ends_a_long_phase_too(build: Build) -> None:
    first, second, third = (build(rank, 3, seconds=60) for rank in range(3))
    for watchdog in (first, second, third):
        watchdog.signs.show(5, "save")
    with first.long_phase("save"), third.long_phase("save"):
        for _ in range(100):
            assert first.check_progress() is None
            assert second.check_progress() is None
            assert third.check_progress() is None
            second.feed()
            time.sleep(0.0001)
        reasons = []
        while not reasons:
            time.sleep(0.0001)
            third.check_progress()
            reasons = [reason for reason in [first.check_progress()] if reason]
        assert reasons == ["no sign of life of rank 1 for 60 s"]
    assert third.check_progress() is None
    first.signs.give_up()
    assert third.check_progress() == "another rank has given the run up"


def test_a_rank_that_has_ended_is_not_missed(build: Build) -> None:
    first, second = (build(rank, 2, seconds=60) for rank in range(2))
    second.signs.show(8, "export")
    with first.long_phase("export"):
        first.check_progress()
        second.signs.remove()
        assert [first.check_progress() for _ in range(100)] == [None] * 100


def progress(rank: int, step: int, phase: str, *, given_up: bool = True) -> RankProgress:
    return RankProgress(rank, "host", 100 + rank, step, phase, "", given_up)


def test_who_is_missing() -> None:
    def name(*states: RankProgress | None) -> str:
        return describe_missing_ranks(list(states))

    there = progress(0, 7, "update")
    assert name(there) == "rank 0 (process 100 on host, after step 7, in phase update)"
    assert name(there, progress(1, 7, "update")).startswith("every rank is at the same place")
    assert name(there, progress(1, 7, "data")) == (
        "rank 1 (process 101 on host, after step 7, in phase data) is behind the others"
    )
    assert "rank 1" in (deaf := name(there, progress(1, 7, "update", given_up=False)))
    assert deaf.endswith("shows no sign of life") and "rank 0" not in deaf
    assert name(there, None) == "rank 1 has ended"
    stopped = progress(1, 7, "data")._replace(workers="data workers 5 (stopped) do not run")
    assert "its data workers 5 (stopped) do not run" in name(there, stopped)
    crowd = [there, *(progress(rank, 6, "data") for rank in range(1, 30))]
    assert name(*crowd).endswith("; and 21 more")


HANGING = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from flame_accel.observe import Watchdog
accelerator = SimpleNamespace(process_index=0, num_processes=1)
run_folder = Path(sys.argv[1])
watchdog = Watchdog(
    accelerator, run_folder, watchdog_seconds=1, train_timeout_seconds=100, step=0
)
def wait_forever():
    time.sleep(1000)
with watchdog.watching():
    watchdog.enter("data", 3)
    wait_forever()
"""


def test_a_process_that_hangs_leaves_stacks_and_asks_to_be_restarted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    ended = run_python(["-c", HANGING, str(run)])
    assert ended.returncode == EXIT_CODE == 75
    stacks = (run / "watchdog/stacks-0.txt").read_text()
    assert "wait_forever" in stacks and "wait_forever" in ended.stderr
    record = json.loads((run / "ended.json").read_text())
    assert (record["reason"], record["step"]) == ("watchdog", 3)
    assert "in phase data" in record["what"]
    assert record["what"] in (run / "log.txt").read_text() and record["what"] in ended.stderr
