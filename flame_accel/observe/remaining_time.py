"""How long a run still takes: its steps, and the work beside them that is due until it ends.

A step costs what recent ones took, from the third of this start on: the first compile kernels and
capture graphs. Evaluations and saves cost what they usually took, without the first ones, which
may compile too; before there was one, a guess. Waiting for uploads is not part of it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from flame_accel.config import Config

WARM_AFTER_STEPS = 2
"""Steps of a start that do not tell what the others take."""
FEW_RECORDS = 4
"""Up to so many, steps before the first record count too: a mean over few steps tells less."""
RECENT_RECORDS = 100
"""Records over which steps are averaged."""
SECONDS_AFTER_EXPORT = 1.0
"""Card, sample and report at the end: of the quickstart on two CPU cores."""


class _Mark(NamedTuple):
    """A moment at which no step was under way."""

    steps: int
    """Of this start."""
    seconds: float
    """Since it began, without work beside the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeriodicWork:
    """Work beside the steps; the last step always has it."""

    every_steps: int = 0
    """0: at the last step only, but for `every_seconds`."""
    every_seconds: float = 0.0
    """Instead of `every_steps`; 0 if that holds."""
    follows_record: bool = False
    """Whether that of a recorded step is done after its record."""
    guess_in_steps: float = 0.0
    """Its cost before it was measured, in costs of a step."""

    def count_due_after(self, step: int, total_steps: int) -> int:
        """How often it is still due when a step is being recorded, without `every_seconds`."""
        first = step if self.follows_record and step > 0 else step + 1
        if first > total_steps:
            return 0
        if not self.every_steps or self.every_seconds:
            return 1
        before_last = (total_steps - 1) // self.every_steps - (first - 1) // self.every_steps
        return before_last + 1


@dataclass(slots=True)
class RemainingTime:
    """Estimates the seconds until the run has ended, with its export and report.

    Args:
        total_steps: Of the run.
        work: What is due beside the steps, by the name under which it is timed.
        exports_like: Which of them costs as much as the export at the end.
        clock: Monotonic clock in seconds.
    """

    total_steps: int
    work: Mapping[str, PeriodicWork]
    exports_like: str | None = None
    clock: Callable[[], float] = time.perf_counter
    _steps: int = 0
    _started_at: float | None = None
    _paused_seconds: float = 0.0
    _warm: _Mark | None = None
    _records: deque[_Mark] = field(default_factory=lambda: deque(maxlen=RECENT_RECORDS))
    _costs: dict[str, list[float]] = field(default_factory=dict)
    _begun_at: dict[str, list[float]] = field(default_factory=dict)

    def add_step(self) -> None:
        """Counts a step of this start."""
        self._steps += 1
        if self._steps == WARM_AFTER_STEPS:
            self._warm = self._mark()

    def add_record(self) -> None:
        """The host has just waited for the device, so that the counted steps are complete."""
        if self._steps > WARM_AFTER_STEPS:
            self._records.append(self._mark())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times work beside the steps; no other is timed inside the block."""
        started_at = self.clock()
        yield
        seconds = self.clock() - started_at
        self._paused_seconds += seconds
        self._costs.setdefault(name, []).append(seconds)
        self._begun_at.setdefault(name, []).append(started_at)

    def estimate_seconds(self, step: int) -> float | None:
        """Seconds until the end, at the record of a step; None before enough steps were taken.

        Args:
            step: Number of completed steps of the run.
        """
        step_seconds = self._mean_step_seconds()
        if step_seconds is None:
            return None
        seconds = (self.total_steps - step) * step_seconds
        share_of_time = 0.0
        for name, work in self.work.items():
            cost = self._cost(name, step_seconds)
            seconds += work.count_due_after(step, self.total_steps) * cost
            if work.every_seconds:
                share_of_time += cost / self._seconds_between(name)
        seconds /= 1 - min(share_of_time, 0.9)
        if self.exports_like is not None:
            seconds += self._cost(self.exports_like, step_seconds)
        return seconds + SECONDS_AFTER_EXPORT

    def _mark(self) -> _Mark:
        now = self.clock()
        if self._started_at is None:
            self._started_at = now
        return _Mark(self._steps, now - self._started_at - self._paused_seconds)

    def _mean_step_seconds(self) -> float | None:
        if not self._records or self._warm is None:
            return None
        # the device may have been a step behind at the first mark
        begin = self._records[0] if len(self._records) > FEW_RECORDS else self._warm
        end = self._records[-1]
        return (end.seconds - begin.seconds) / (end.steps - begin.steps)

    def _seconds_between(self, name: str) -> float:
        """From one to the next: at least as long as asked for, since it waits for a record."""
        begun = self._begun_at.get(name, [])
        measured = (begun[-1] - begun[0]) / (len(begun) - 1) if len(begun) > 1 else 0.0
        return max(measured, self.work[name].every_seconds)

    def _cost(self, name: str, step_seconds: float) -> float:
        measured = self._costs.get(name)
        if not measured:
            return self.work[name].guess_in_steps * step_seconds
        # before the first save there is a look at how to save; the first real one is slow
        usual = measured[2:] or measured[1:] or measured
        return median(usual[-RECENT_RECORDS:])


def build_remaining_time(config: Config, *, evaluation_batches: int) -> RemainingTime:
    """That of a run of `flame_accel.train`, which times "evaluation" and "save".

    Args:
        config: The whole configuration.
        evaluation_batches: Of one rank and evaluation; 0 without validation.
    """
    training, checkpoint, evaluation = config.training, config.checkpoint, config.evaluation
    work: dict[str, PeriodicWork] = {}
    if evaluation_batches:
        # a forward pass is about a third of a step
        rows_per_step = training.batch_size * training.gradient_accumulation_steps
        guess = evaluation_batches * evaluation.batch_size / rows_per_step / 3
        work["evaluation"] = PeriodicWork(every_steps=evaluation.interval, guess_in_steps=guess)
    if checkpoint.enable_checkpoint:
        by_seconds = checkpoint.interval_type == "seconds"
        work["save"] = PeriodicWork(
            every_steps=0 if by_seconds else checkpoint.interval,
            every_seconds=checkpoint.interval if by_seconds else 0.0,
            follows_record=True,
        )
    return RemainingTime(
        total_steps=training.steps, work=work, exports_like="save" if "save" in work else None
    )
