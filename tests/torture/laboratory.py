"""What every experiment works with: a tiny run, its uninterrupted result, and outcomes to count."""

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.runs import TINY_GLA, TINY_RUN, WITHOUT_SAMPLE, model_digests, read_records
from tests.torture.forked_runs import ForkedRun, RunForker

STEPS, INTERVAL = 24, 3
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Outcome:
    """What became of one run that something was done to."""

    experiment: str
    """A name of `experiments.EXPERIMENTS`."""
    number: int
    """Of the trial; with it and the seed it can be repeated."""
    what: str = ""
    """What was done."""
    kind: str = ""
    """In a few words, to be counted: what was done, or what the run made of it."""
    problems: list[str] = field(default_factory=list)
    """Why it did not survive; empty if it did."""
    seconds: float = 0.0


class Skipped(Exception):
    """An experiment that cannot be made on this machine; says why."""


class Result(NamedTuple):
    """What equal runs have in common."""

    weights: dict[str, str]
    """Digests of the exported files."""
    losses: list[tuple[int, float]]
    """By step, each step as often as it was recorded."""


class Laboratory:
    """A place for runs.

    Args:
        folder: Everything is made below it; the folders of runs are removed once they are judged.
        seed: Of all that is random; each trial draws its own numbers from it.

    Attributes:
        experiment: Name of the one that is made.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.experiment = ""
        self.random = random.Random(seed)
        self.forker = RunForker()
        self._corpus, self._model = folder / "train.jsonl", folder / "gla.json"
        texts = [f"document {i}: " + "abc def " * (i * 7 % 23) + "\n" for i in range(40)]
        self._corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        self._model.write_text(json.dumps(TINY_GLA))
        self._expected: dict[str, tuple[Result, float]] = {}

    def options(self, run_folder: Path, **changes: Any) -> list[str]:
        """The command line of a tiny run of 24 steps with a checkpoint every 3."""
        options = {
            **TINY_RUN,
            **WITHOUT_SAMPLE,
            "job.dump_folder": run_folder,
            "model.config": self._model,
            "training.dataset": self._corpus,
            "training.steps": STEPS,
            "checkpoint.interval": INTERVAL,
            # as on a GPU by default; it is the harder case
            "checkpoint.async_mode": "async",
            **changes,
        }
        return [f"--{name}={value}" for name, value in options.items() if value is not None]

    def start(
        self,
        run_folder: Path,
        *,
        ranks: int = 1,
        prepare: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> ForkedRun:
        """Starts a run in a folder; what it prints goes beside it."""
        engine = changes.pop("engine", {})
        output = run_folder.with_suffix(".out")
        options = self.options(run_folder, **changes)
        return self.forker.start(options, output, ranks=ranks, prepare=prepare, **engine)

    def expected(self, *, ranks: int = 1, **changes: Any) -> tuple[Result, float]:
        """The result of a run that is left alone, and seconds from its first step to its end."""
        key = json.dumps([ranks, {name: str(value) for name, value in changes.items()}])
        if key not in self._expected:
            run_folder = self.folder / f"alone-{len(self._expected)}"
            run = self.start(run_folder, ranks=ranks, **changes)
            self.wait_for_step(run, run_folder, 1)
            first_step = time.monotonic()
            codes = run.wait()
            assert not any(codes), run.printed()[-4000:]
            self._expected[key] = read_result(run_folder), time.monotonic() - first_step
        return self._expected[key]

    def wait_for_step(self, run: ForkedRun, run_folder: Path, step: int) -> bool:
        """Waits until a run has recorded a step; returns whether it still runs."""
        while run.exit_codes() is None:
            if any(record["step"] >= step for record in read_records(run_folder)):
                return True
            time.sleep(0.001)
        return False

    def finish(
        self,
        run_folder: Path,
        outcome: Outcome,
        *,
        ranks: int = 1,
        may_lack_records: bool = False,
        **changes: Any,
    ) -> str:
        """Starts a run again, to its end, and notes in the outcome where it is not the expected.

        Args:
            run_folder: Of the run.
            outcome: Gets the problems.
            ranks: Number of processes.
            may_lack_records: Whether losses are not compared.
            changes: Of the options.

        Returns:
            What it printed.
        """
        run = self.start(run_folder, ranks=ranks, **changes)
        codes = run.wait()
        if any(codes):
            outcome.problems.append(f"exit codes {codes}: {run.printed()[-400:]}")
        else:
            result = read_result(run_folder)
            expected = self.expected(ranks=ranks, **changes)[0]
            if may_lack_records:
                expected = expected._replace(losses=result.losses)
            outcome.problems += [
                f"{name} differ from those of a run left alone"
                for name in Result._fields
                if getattr(result, name) != getattr(expected, name)
            ]
        if TRACEBACK in run.printed():
            outcome.problems.append(f"a traceback: {run.printed()[-400:]}")
        return run.printed()

    def repeat(
        self, numbers: Iterable[int], one: Callable[[Path, Outcome, int], None]
    ) -> Iterator[Outcome]:
        """Runs `one(run folder, outcome to complete, number)` for each of the numbers."""
        for number in numbers:
            run_folder = self.folder / f"{self.experiment}-{number}"
            self.random = random.Random(f"{self.seed} {self.experiment} {number}")
            outcome, begin = Outcome(self.experiment, number), time.monotonic()
            try:
                one(run_folder, outcome, number)
            except Exception as error:
                outcome.problems.append(f"the experiment failed: {type(error).__name__}: {error}")
            outcome.seconds = time.monotonic() - begin
            if not outcome.problems:
                shutil.rmtree(run_folder, ignore_errors=True)
            yield outcome


def read_result(run_folder: Path) -> Result:
    """The result of a run that has finished."""
    losses = [(record["step"], record["train/loss"]) for record in read_records(run_folder)]
    return Result(model_digests(run_folder / "hf"), losses)


def are_close(some: list[tuple[int, float]], others: list[tuple[int, float]]) -> bool:
    """Whether losses are those of the same steps, and equal up to the order of sums."""
    return [step for step, _ in some] == [step for step, _ in others] and all(
        math.isclose(loss, other, rel_tol=1e-3)
        for (_, loss), (_, other) in zip(some, others, strict=True)
    )


def summarize(outcomes: list[Outcome]) -> Mapping[str, tuple[int, int]]:
    """How many survived, of how many, by experiment."""
    table: dict[str, tuple[int, int]] = {}
    for outcome in outcomes:
        survived, total = table.get(outcome.experiment, (0, 0))
        table[outcome.experiment] = (survived + (not outcome.problems), total + 1)
    return table
