"""Disks that fail: every system call of a run in turn, and a disk that is full for a while."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from flame_accel.checkpoint_files import find_damage, list_checkpoint_entries
from tests.helpers.checkpoints import undo_checkpoint
from tests.torture.forked_runs import ForkedRun
from tests.torture.laboratory import TRACEBACK, Laboratory, Outcome, Skipped, read_result
from tests.torture.system_calls import (
    IS_SUPPORTED,
    NEED_SPACE,
    CallFault,
    read_call_log,
)

SAVES = {"training.steps": 6, "checkpoint.interval": 1, "checkpoint.keep_latest_k": 2}
"""From step 4 on: two saves, one of them the last, each with a prune, and the export."""


GOES_ON = re.compile(
    r"\w+ (checkpoint/step-[0-5]\.tmp|metrics\.jsonl$|log\.txt$|(\.tmp-)?report\.html)"
)
"""Calls of which one that fails must not end the run; the save of step 5 is not the last."""


def fail_every_call(
    laboratory: Laboratory, numbers: Iterable[int], *, ranks: int = 1
) -> Iterator[Outcome]:
    """One system call of a rank on a file of the run folder fails, or all from it on do.

    The run goes on or ends with a sentence, and a start without faults ends with the same bits.
    """
    if not IS_SUPPORTED:
        raise Skipped("system calls are supervised on Linux on x86-64 only")
    at_step_4 = laboratory.folder / f"to-fail-{ranks}"
    whole = laboratory.start(at_step_4, ranks=ranks, **{**SAVES, "checkpoint.keep_latest_k": 0})
    assert not any(whole.wait()), whole.printed()
    for step in (5, 6):
        undo_checkpoint(at_step_4 / f"checkpoint/step-{step}")
    shutil.rmtree(at_step_4 / "hf")
    expected = laboratory.expected(ranks=ranks, **SAVES)[0]

    def run_with(run_folder: Path, fault: CallFault | None = None, rank: int = 0) -> ForkedRun:
        shutil.copytree(at_step_4, run_folder)
        calls = {"folder": os.path.realpath(run_folder), "log": f"{run_folder}.calls"}
        prepare = {"calls": calls, "fault": fault, "faulty_rank": rank}
        run = laboratory.start(run_folder, ranks=ranks, prepare=prepare, **SAVES)
        run.wait()
        return run

    counted = laboratory.folder / f"to-count-{ranks}"
    run = run_with(counted)
    assert not any(run.wait()), run.printed()
    faults = [
        (rank, fault)
        for rank in range(ranks)
        for fault in _all_faults(read_call_log(Path(f"{counted}.calls-{rank}")).calls)
    ]
    random.Random(laboratory.seed).shuffle(faults)

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        rank, fault = faults[number]
        outcome.what = fault.describe() + (f" on rank {rank}" if ranks > 1 else "")
        run = run_with(run_folder, fault, rank)
        codes = run.wait()
        outcome.kind = "goes on" if not any(codes) else "ends with a sentence"
        if any(codes) and not fault.stays and GOES_ON.match(fault.call):
            outcome.problems.append("one failure of this call must not end the run")
        _check_end(codes, run.printed(), outcome, os.strerror(fault.error))
        if not any(_intact_steps(run_folder)):
            outcome.problems.append("no intact checkpoint is left")
        if not any(codes) and read_result(run_folder).weights != expected.weights:
            outcome.problems.append("it ended as if all were well, with other weights")
        # of a rank that was killed there is none
        log = Path(f"{run_folder}.calls-{rank}")
        if log.exists() and not read_call_log(log).failed:
            outcome.kind = "call not made"
        # a finished run does not write what metrics.jsonl lacks
        laboratory.finish(
            run_folder,
            outcome,
            ranks=ranks,
            may_lack_records="metrics.jsonl" in fault.call or fault.stays,
            **SAVES,
        )

    total = len(faults)
    return laboratory.repeat(takewhile(lambda number: number < total, numbers), one)


def _all_faults(calls: list[str]) -> list[CallFault]:
    """For each call: EIO, and ENOSPC if it needs space; once, and from then on."""
    faults, seen = [], Counter[str]()
    for call in calls:
        errors = [errno.EIO, errno.ENOSPC] if call.split()[0] in NEED_SPACE else [errno.EIO]
        faults += [
            CallFault(call, seen[call], error, stays) for error in errors for stays in (False, True)
        ]
        seen[call] += 1
    return faults


DISK_MIB = 64
LONG_RUN = {"training.steps": 60, "checkpoint.interval": 2, "checkpoint.keep_latest_k": 2}


def fill_the_disk(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """The run folder's disk fills up, every other time for good.

    Freed after some failed saves, the run ends as if nothing had been; else it ends with exit code
    1 after checkpoint.max_failures, and is continued once there is room.
    """
    with _own_disk(laboratory.folder / "disk"):
        pass

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        stays_full, failures = number % 2 == 0, 1 + number // 2 % 3
        run_options = LONG_RUN | {"checkpoint.max_failures": 3 if stays_full else 1000}
        with _own_disk(run_folder):
            run = laboratory.start(run_folder, **run_options)
            laboratory.wait_for_step(run, run_folder, 4 + number % 12)
            # a save may go on in the background
            while not any(_intact_steps(run_folder)) and run.exit_codes() is None:
                time.sleep(0.005)
            # less than a checkpoint, so that some saves do not begin and others break off
            left = laboratory.random.randrange(_size_of_newest(run_folder))
            filler = _fill_all_but(run_folder, left)
            outcome.what = f"all but {left:,} bytes"
            if stays_full:
                outcome.kind = "full for good"
            else:
                outcome.kind = "freed " + _free_after_failures(run, filler, failures)
            codes = run.wait()
            if "could not be saved" not in run.printed():
                outcome.kind = "not in time"
            elif stays_full and "in a row (checkpoint.max_failures)" not in run.printed():
                outcome.problems.append(f"no word on max_failures: {run.printed()[-400:]}")
            # what it deletes itself, such as a save that broke off, may have made room
            is_saved = LONG_RUN["training.steps"] in _intact_steps(run_folder)
            if stays_full and is_saved and outcome.kind == "full for good":
                outcome.kind = "made room itself"
            must_end = [0] if is_saved else [1]
            if codes != must_end and outcome.kind != "not in time":
                outcome.problems.append(f"exit codes {codes}, not {must_end}")
            _check_end(codes, run.printed(), outcome, "make room there")
            filler.unlink(missing_ok=True)
            laboratory.finish(run_folder, outcome, **LONG_RUN)

    return laboratory.repeat(numbers, one)


@contextmanager
def _own_disk(folder: Path) -> Iterator[None]:
    """A small disk at the place of a folder.

    Raises:
        Skipped: This process may not mount one.
    """
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "torture", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped("a disk of its own (tmpfs) can only be mounted by root") from error
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _size_of_newest(run_folder: Path) -> int:
    [*_, newest] = list_checkpoint_entries(run_folder / "checkpoint").checkpoints.values()
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


def _fill_all_but(folder: Path, left_bytes: int) -> Path:
    """Takes what is free on a disk, and goes on until what is being deleted there is taken too."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        for _ in range(5):
            free = shutil.disk_usage(folder).free
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + free)
            time.sleep(0.005)
        os.ftruncate(file.fileno(), max(0, file.seek(0, os.SEEK_END) - left_bytes))
    return filler


def _free_after_failures(run: ForkedRun, filler: Path, failures: int) -> str:
    """Frees the disk once so many saves have failed; says when."""
    while run.exit_codes() is None:
        if run.printed().count("could not be saved") >= failures:
            filler.unlink()
            return f"after {failures} failed saves"
        time.sleep(0.001)
    return "too late"


def _check_end(codes: list[int], printed: str, outcome: Outcome, reason: str) -> None:
    """Exit code 0, or 1 and a sentence with the reason; no traceback.

    Of several ranks, one that has not ended two seconds after another one is killed.
    """
    ended = [code for code in codes if code != -signal.SIGKILL] if any(codes) else codes
    if not ended or set(ended) not in ({0}, {1}) or (any(codes) and reason not in printed):
        outcome.problems.append(f"exit codes {codes}: {printed[-400:]}")
    if TRACEBACK in printed:
        outcome.problems.append(f"a traceback: {printed[-400:]}")


def _intact_steps(run_folder: Path) -> Iterator[int]:
    entries = list_checkpoint_entries(run_folder / "checkpoint")
    for step, folder in entries.checkpoints.items():
        if find_damage(folder, step=step) is None:
            yield step
