"""Processes that are killed, signalled, stopped or go wrong, and the runs that they belong to."""

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.launches import FSDP2
from tests.helpers.runs import read_records
from tests.torture.forked_runs import ForkedRun
from tests.torture.laboratory import STEPS, TRACEBACK, Laboratory, Outcome, are_close, read_result

EXIT_CODE = os.EX_TEMPFAIL
"""Of the watchdog."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _wait_for_a_random_moment(
    laboratory: Laboratory, run: ForkedRun, run_folder: Path, *, in_save: bool, seconds: float
) -> str:
    """Waits for a moment after the first step, within a save if so asked; says which it is."""
    laboratory.wait_for_step(run, run_folder, 1)
    if not in_save:
        time.sleep(laboratory.random.random() * seconds)
        return "at a random time"
    saves = laboratory.random.randrange(8)
    seen: set[str] = set()
    while run.exit_codes() is None:
        open_saves = {path.name for path in run_folder.glob("checkpoint/*.tmp*")}
        if open_saves and len(seen | open_saves) > saves:
            time.sleep(laboratory.random.random() * 0.03)
            return f"in save {len(seen) + 1}"
        seen |= open_saves
    return "after its last save"


def _kind_of(moments: list[str]) -> str:
    in_save = any(moment.startswith("in save") for moment in moments)
    return "in a save" if in_save else "at another time"


def kill_at_random(
    laboratory: Laboratory,
    numbers: Iterable[int],
    *,
    ranks: int = 1,
    engine: dict[str, str] | None = None,
) -> Iterator[Outcome]:
    """SIGKILL to all ranks, one to three times in a run, every other time within a save."""
    changes: dict[str, Any] = {"engine": engine} if engine else {}
    seconds = laboratory.expected(ranks=ranks, **changes)[1]

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        moments = []
        for _ in range(laboratory.random.choice((1, 1, 2, 3))):
            run = laboratory.start(run_folder, ranks=ranks, **changes)
            moments.append(
                _wait_for_a_random_moment(
                    laboratory, run, run_folder, in_save=number % 2 == 0, seconds=seconds
                )
            )
            run.signal_ranks(signal.SIGKILL)
            run.wait()
        outcome.what = ", ".join(moments)
        outcome.kind = _kind_of(moments)
        laboratory.finish(run_folder, outcome, ranks=ranks, **changes)

    return laboratory.repeat(numbers, one)


def kill_one_rank(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """SIGKILL to one of two ranks; the other one has to end by itself or by its launcher."""
    seconds = laboratory.expected(ranks=2)[1]

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        run = laboratory.start(run_folder, ranks=2)
        moment = _wait_for_a_random_moment(
            laboratory, run, run_folder, in_save=number % 2 == 0, seconds=seconds
        )
        rank = number // 2 % 2
        run.signal_ranks(signal.SIGKILL, [rank])
        run.wait()
        outcome.what = f"rank {rank} {moment}"
        outcome.kind = _kind_of([moment])
        laboratory.finish(run_folder, outcome, ranks=2)

    return laboratory.repeat(numbers, one)


def stop_by_signal(
    laboratory: Laboratory, numbers: Iterable[int], *, ranks: int = 1
) -> Iterator[Outcome]:
    """SIGTERM, SIGINT or SIGUSR1 to all ranks or one: no step may be lost."""
    seconds = laboratory.expected(ranks=ranks)[1]

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        run = laboratory.start(run_folder, ranks=ranks)
        _wait_for_a_random_moment(
            laboratory, run, run_folder, in_save=number % 4 == 0, seconds=seconds * 0.6
        )
        sent = STOP_SIGNALS[number % 3]
        only_one = number % 5 == 0 and ranks > 1
        run.signal_ranks(sent, [number % ranks] if only_one else None)
        codes = run.wait()
        outcome.what = f"{sent.name} to {'one rank' if only_one else 'all ranks'}"
        _check_nothing_is_lost(run_folder, codes, run.printed(), outcome)
        laboratory.finish(run_folder, outcome, ranks=ranks)

    return laboratory.repeat(numbers, one)


def _check_nothing_is_lost(
    run_folder: Path, codes: list[int], printed: str, outcome: Outcome
) -> None:
    if any(codes):
        outcome.problems.append(f"exit codes {codes}: {printed[-400:]}")
    if TRACEBACK in printed:
        outcome.problems.append(f"a traceback: {printed[-400:]}")
    ended = json.loads((run_folder / "ended.json").read_text())
    last = read_records(run_folder)[-1]["step"]
    if ended["step"] != last or not (run_folder / f"checkpoint/step-{last}").is_dir():
        outcome.problems.append(f"step {last} was recorded, and is not saved: {ended}")
    outcome.what += f", {ended['reason']} after step {ended['step']}"
    outcome.kind = f"ended by {ended['reason']}" if ended["step"] < STEPS else "finished before"


def kill_fsdp2(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """As `kill_at_random`, with two ranks of FSDP2."""
    return kill_at_random(laboratory, numbers, ranks=2, engine=FSDP2)


WATCHED = {
    "training.num_workers": 1,
    "training.watchdog_seconds": 3,
    "training.steps": 200,
    "checkpoint.interval": 20,
}


def stop_a_process(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """SIGSTOP to one of two ranks, or to the data worker of a single process, for good.

    The watchdog ends the run with the exit code that asks for another start.
    """

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        ranks = 1 if number % 3 == 2 else 2
        run = laboratory.start(run_folder, ranks=ranks, **WATCHED)
        # the first two steps may take long
        laboratory.wait_for_step(run, run_folder, 4 + laboratory.random.randrange(100))
        if ranks == 2:
            outcome.kind, named = "a rank", f"rank {number % 3} "
            run.signal_ranks(signal.SIGSTOP, [number % 3])
            workers: list[psutil.Process] = []
        else:
            outcome.kind, named = "a data worker", "data workers"
            workers = psutil.Process(run.pids[0]).children(recursive=True)
            for worker in workers:
                worker.suspend()
        codes = run.wait()
        outcome.what = f"{named.strip()}: exit codes {codes}"
        if EXIT_CODE not in codes or named not in run.printed() or TRACEBACK in run.printed():
            outcome.problems.append(f"exit codes {codes}: {run.printed()[-600:]}")
        _, alive = psutil.wait_procs(workers, timeout=20)
        if alive:
            outcome.problems.append(f"left behind: {alive}")
        laboratory.finish(run_folder, outcome, ranks=ranks, **WATCHED)

    return laboratory.repeat(numbers, one)


def poison_one_rank(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """The gradient of one step is not finite on one of two ranks: all of them skip that update.

    With DDP it is that of the rank's own loss, with FSDP2 one number of the rank's shard of the sum
    of all. The result is that of a run with such a gradient on all ranks, and close to that of one
    process.
    """

    def run_poisoned(run_folder: Path, poison: dict[str, Any], ranks: int) -> ForkedRun:
        options = {"training.batch_size": 4 // ranks, "engine": FSDP2 if poison["in_shard"] else {}}
        options = options if ranks > 1 else {}
        run = laboratory.start(run_folder, ranks=ranks, prepare={"poison": poison}, **options)
        run.wait()
        return run

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        rank, step, in_shard = number // 2 % 2, 2 + number % 20, number % 2 == 1
        outcome.kind = "FSDP2, one number of a shard" if in_shard else "DDP, all of a rank's own"
        outcome.what = f"step {step}, rank {rank}"
        poison = {"step": step, "ranks": [rank], "in_shard": in_shard}
        run = run_poisoned(run_folder, poison, 2)
        if any(run.exit_codes() or [1]) or TRACEBACK in run.printed():
            outcome.problems.append(f"exit codes {run.exit_codes()}: {run.printed()[-600:]}")
            return
        skips = [record["optimizer/skipped_steps"] for record in read_records(run_folder)]
        if skips != [int(number >= step) for number in range(1, STEPS + 1)]:
            outcome.problems.append(f"skipped so far, step by step: {skips}")
        on_all, alone = run_folder.with_suffix(".on-all"), run_folder.with_suffix(".alone")
        run_poisoned(on_all, {**poison, "ranks": [0, 1]}, 2)
        if read_result(run_folder) != read_result(on_all):
            outcome.problems.append("another result than with all ranks poisoned")
        run_poisoned(alone, {"step": step, "ranks": [0], "in_shard": False}, 1)
        if not are_close(read_result(run_folder).losses, read_result(alone).losses):
            outcome.problems.append("other losses than those of one process")

    return laboratory.repeat(numbers, one)
