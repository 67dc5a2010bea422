"""Runs the experiments and writes their report.

    python -m tests.torture                       a few trials of each
    python -m tests.torture --long --jobs 2       all, two at once
    python -m tests.torture --only kill           those whose name contains a word
    python -m tests.torture --only kill --seed 0 --trial 17

Exit code 1 if anything did not survive. The report is JSON and a page of HTML; it is written again
after every experiment.
"""

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from tests.torture.experiments import EXPERIMENTS, run_experiment
from tests.torture.laboratory import Laboratory, Outcome, Skipped, summarize
from tests.torture.report import Report

FAILING_CALLS = 1100
"""About so many system calls can fail in so many ways; for the estimate."""


class _Ended(NamedTuple):
    """A thread has made its last trial of an experiment."""

    experiment: str
    skipped: str = ""
    """Why it was not made at all."""


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--count", type=int, help="trials of each experiment")
    parser.add_argument("--trial", type=int, help="only the one of this number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--report", type=Path, help="folder for torture.json and torture.html")
    arguments = parser.parse_args()
    plan = {
        name: range(arguments.count or (experiment.long if arguments.long else experiment.short))
        if arguments.trial is None
        else range(arguments.trial, arguments.trial + 1)
        for name, experiment in EXPERIMENTS.items()
        if arguments.only in name
    }
    minutes = sum(
        EXPERIMENTS[name].seconds * min(len(numbers), max(FAILING_CALLS, EXPERIMENTS[name].short))
        if name == "calls"
        else EXPERIMENTS[name].seconds * len(numbers)
        for name, numbers in plan.items()
    ) / (60 * arguments.jobs)
    print(f"about {minutes:.0f} minutes on a quiet machine", flush=True)
    report = Report(arguments.report, arguments.seed, arguments.jobs, " ".join(sys.argv[1:]))
    # an end from outside keeps what is known by then
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for message in _run_in_threads(plan, arguments.seed, arguments.jobs):
            if isinstance(message, Outcome):
                report.outcomes.append(message)
                _print_progress(message, summarize(report.outcomes)[message.experiment])
                continue
            if message.skipped:
                report.skipped[message.experiment] = message.skipped
                print(f"{message.experiment}: skipped, {message.skipped}", flush=True)
            report.write()
    finally:
        report.write()
        for name, (survived, total) in summarize(report.outcomes).items():
            print(f"{name}: {survived} of {total}")
    sys.exit(any(outcome.problems for outcome in report.outcomes))


def _run_in_threads(plan: Mapping[str, range], seed: int, jobs: int) -> Iterator[Outcome | _Ended]:
    """What threads that share the trials report, as it comes; each starts runs of its own."""
    messages: Queue[Outcome | _Ended | None] = Queue()
    # the next one is drawn in one step
    numbers_left = {name: iter(numbers) for name, numbers in plan.items()}
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        for job in range(jobs):
            arguments = (Path(folder) / f"job-{job}", seed, numbers_left, messages)
            threading.Thread(target=_make_trials, args=arguments, daemon=True).start()
        working = jobs
        while working:
            message = messages.get()
            if message is None:
                working -= 1
            else:
                yield message


def _make_trials(
    folder: Path,
    seed: int,
    numbers_left: Mapping[str, Iterator[int]],
    messages: "Queue[Outcome | _Ended | None]",
) -> None:
    """One of the threads."""
    folder.mkdir()
    laboratory = Laboratory(folder, seed=seed)
    for name, numbers in numbers_left.items():
        skipped = ""
        try:
            for outcome in run_experiment(laboratory, name, numbers):
                messages.put(outcome)
        except Skipped as reason:
            skipped = str(reason)
        except Exception as error:
            problem = f"the experiment failed: {type(error).__name__}: {error}"
            messages.put(Outcome(name, 0, problems=[problem]))
        messages.put(_Ended(name, skipped))
    laboratory.forker.close()
    messages.put(None)


def _print_progress(outcome: Outcome, counts: tuple[int, int]) -> None:
    said = "; ".join(outcome.problems) or "survived"
    print(
        f"{outcome.experiment} {outcome.number} [{counts[0]}/{counts[1]}] {outcome.kind}, "
        f"{outcome.what}: {said} ({outcome.seconds:.1f} s)",
        flush=True,
    )


if __name__ == "__main__":
    main()
