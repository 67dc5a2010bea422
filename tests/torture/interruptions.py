"""Runs that are killed, signalled or stopped at a random moment, and started again."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.launches import FSDP2
from tests.helpers.runs import read_records
from tests.torture.forked_runs import ForkedRun
from tests.torture.laboratory import TRACEBACK, Laboratory, Outcome

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


def kill_at_random(
    laboratory: Laboratory, count: int, *, ranks: int = 1, engine: dict[str, str] | None = None
) -> Iterator[Outcome]:
    """SIGKILL to all ranks, one to three times in a run, every other time within a save."""
    changes: dict[str, Any] = {"engine": engine} if engine else {}
    name = f"kill -9, {ranks} {'FSDP2 ' if engine else ''}process{'es' * (ranks > 1)}"
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
        laboratory.finish(run_folder, outcome, ranks=ranks, **changes)

    return laboratory.repeat(name, count, one)


def kill_one_rank(laboratory: Laboratory, count: int) -> Iterator[Outcome]:
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
        laboratory.finish(run_folder, outcome, ranks=2)

    return laboratory.repeat("kill -9 of one of two ranks", count, one)


def stop_by_signal(laboratory: Laboratory, count: int, *, ranks: int = 1) -> Iterator[Outcome]:
    """SIGTERM, SIGINT or SIGUSR1 to all ranks or one: no step may be lost."""
    seconds = laboratory.expected(ranks=ranks)[1]

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        run = laboratory.start(run_folder, ranks=ranks)
        _wait_for_a_random_moment(
            laboratory, run, run_folder, in_save=number % 4 == 0, seconds=seconds * 0.8
        )
        sent = STOP_SIGNALS[number % 3]
        only_one = number % 5 == 0 and ranks > 1
        run.signal_ranks(sent, [number % ranks] if only_one else None)
        codes = run.wait()
        outcome.what = f"{sent.name} to {'one rank' if only_one else 'all ranks'}"
        _check_nothing_is_lost(run_folder, codes, run.printed(), outcome)
        laboratory.finish(run_folder, outcome, ranks=ranks)

    return laboratory.repeat(f"signal, {ranks} process{'es' * (ranks > 1)}", count, one)


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


def kill_fsdp2(laboratory: Laboratory, count: int) -> Iterator[Outcome]:
    """As `kill_at_random`, with two ranks of FSDP2."""
    return kill_at_random(laboratory, count, ranks=2, engine=FSDP2)
