"""The time left: within 5% of a run after 5% of it, on a clock of the test's own."""

import random
from dataclasses import dataclass, field

import pytest

from flame_accel.observe.remaining_time import (
    SECONDS_AFTER_EXPORT,
    PeriodicWork,
    RemainingTime,
)

STEPS, LOG_EVERY = 1000, 10


@dataclass
class SimulatedRun:
    """A run in which each piece of work takes a time of its own, give or take the jitter."""

    work: dict[str, PeriodicWork]
    costs: dict[str, float]
    step_seconds: float = 1.0
    first_steps: tuple[float, float] = (120.0, 15.0)
    jitter: float = 0.1
    first_save_seconds: float = 0.0
    """Beyond those of the others."""
    resumes_from: int = 0
    export_seconds: float = 0.0
    now: float = 0.0
    estimates: dict[int, float | None] = field(default_factory=dict)

    def spend(self, seconds: float) -> None:
        self.now += seconds * self.random.uniform(1 - self.jitter, 1 + self.jitter)

    def run(self) -> None:
        self.random = random.Random(0)
        exports_like = "save" if "save" in self.work else None
        subject = RemainingTime(
            total_steps=STEPS, work=self.work, exports_like=exports_like, clock=lambda: self.now
        )
        saved_at, first_save = 0.0, self.first_save_seconds
        self.recorded_at: dict[int, float] = {}
        for step in range(self.resumes_from + 1, STEPS + 1):
            of_start = step - self.resumes_from
            self.spend(self.first_steps[of_start - 1] if of_start <= 2 else self.step_seconds)
            subject.add_step()
            if logged := step == 1 or step % LOG_EVERY == 0 or step == STEPS:
                subject.add_record()
            if "evaluation" in self.work and self.is_due("evaluation", step):
                with subject.timed("evaluation"):
                    self.spend(self.costs["evaluation"])
            if logged:
                self.estimates[step] = subject.estimate_seconds(step)
                self.recorded_at[step] = self.now
            if "save" in self.work:
                every = self.work["save"].every_seconds
                due = self.is_due("save", step)
                if every:
                    due = logged and self.now - saved_at >= every
                if due or step == STEPS:
                    saved_at = self.now
                    with subject.timed("save"):
                        self.spend(self.costs["save"] + first_save)
                    first_save = 0.0
        self.now += self.export_seconds + SECONDS_AFTER_EXPORT

    def is_due(self, name: str, step: int) -> bool:
        every = self.work[name].every_steps
        return step == STEPS or (every > 0 and step % every == 0)


EVERY_50 = PeriodicWork(every_steps=50)
SAVES = PeriodicWork(every_steps=40, follows_record=True)
RUNS = {
    "steps alone": SimulatedRun({}, {}),
    "evaluations and saves": SimulatedRun(
        {"evaluation": EVERY_50, "save": SAVES},
        {"evaluation": 12.0, "save": 5.0},
        export_seconds=5.0,
    ),
    "a first save of a minute": SimulatedRun(
        {"save": PeriodicWork(every_steps=20, follows_record=True)},
        {"save": 1.0},
        first_save_seconds=60.0,
        export_seconds=1.0,
    ),
    "saves by the clock": SimulatedRun(
        {"save": PeriodicWork(every_seconds=60.0, follows_record=True)},
        {"save": 5.0},
        export_seconds=5.0,
    ),
    "one evaluation at the end": SimulatedRun(
        {"evaluation": PeriodicWork(guess_in_steps=150.0)}, {"evaluation": 155.0}, jitter=0.05
    ),
    "a resumed run": SimulatedRun(
        {"evaluation": EVERY_50, "save": SAVES},
        {"evaluation": 12.0, "save": 5.0},
        export_seconds=5.0,
        resumes_from=437,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_from_a_twentieth_of_a_run_on_the_end_is_known_within_5_percent(name: str) -> None:
    run = RUNS[name]
    run.run()
    of_start = STEPS - run.resumes_from
    judged = [s for s in run.estimates if s - run.resumes_from >= 0.05 * of_start]
    assert len(judged) > 50
    for step in judged:
        estimate = run.estimates[step]
        assert estimate is not None
        left = run.now - run.recorded_at[step]
        # the last minutes are told to a few seconds
        assert estimate == pytest.approx(left, rel=0.05, abs=0.01 * run.now), step
    assert run.estimates[STEPS] == pytest.approx(run.now - run.recorded_at[STEPS], abs=3)


def test_slow_first_steps_are_no_measure_of_the_others() -> None:
    run = SimulatedRun({}, {}, jitter=0.0)
    run.run()
    assert run.estimates[1] is None
    assert run.estimates[10] == pytest.approx(990 + SECONDS_AFTER_EXPORT)


@pytest.mark.parametrize("step", [0, 1, 39, 40, 41, 999, 1000])
@pytest.mark.parametrize("follows_record", [False, True])
def test_what_is_due_is_counted_as_the_loop_does_it(step: int, follows_record: bool) -> None:
    work = PeriodicWork(every_steps=40, follows_record=follows_record)
    first = step if follows_record and step else step + 1
    due = sum(s == STEPS or s % 40 == 0 for s in range(first, STEPS + 1))
    assert work.count_due_after(step, STEPS) == due
