"""Starts the runs of a sweep as processes of `flame-accel train`, some of them at once.

A run that fails does not end the others. One that has finished is not started again; one that was
interrupted continues, as the same command line always does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from flame_accel.commands.sweep_plan import PlannedRun
from flame_accel.config import UsageError, load_run_file
from flame_accel.config.schema import Config, option_value, options
from flame_accel.cpu_cores import count_cores_in_affinity_mask

POLL_SECONDS = 0.2
SECTIONS_OF_RESULTS = ("model", "optimizer", "training", "evaluation")
"""Options in these sections decide what a run measures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a run."""

    run: PlannedRun
    exit_code: int
    """Of its process; 0 if it had finished before."""
    finished: bool
    """Whether it trained all its steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Started:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int
    """Which of the runs at once, from 0."""


def has_finished(run: PlannedRun) -> bool:
    """Whether the folder of a run says that it trained all its steps."""
    from flame_accel.observe.run_end import read_finished_step

    step = read_finished_step(run.folder)
    return step is not None and step >= run.config.training.steps


def check_finished_runs_have_these_options(plan: Sequence[PlannedRun]) -> None:
    """Checks that what is not trained again was trained with the same options.

    Raises:
        UsageError: names the first run with other options, and them.
    """
    for run in filter(has_finished, plan):
        differing = _differing_options(run.config, load_run_file(run.folder / "config.toml"))
        if differing:
            raise UsageError(
                f"has finished with other values of {', '.join(differing)}",
                where=str(run.folder),
                remedy="choose another --output, or delete that folder to train it anew",
            )


def _differing_options(planned: Config, stored: Config) -> list[str]:
    return [
        name
        for name in options()
        if name.partition(".")[0] in SECTIONS_OF_RESULTS
        and option_value(planned, name) != option_value(stored, name)
    ]


def run_all(plan: Sequence[PlannedRun], *, at_once: int, num_gpus: int) -> list[Outcome]:
    """Runs what has not finished, in order, and waits for all of it.

    Args:
        plan: the runs.
        at_once: number of runs at the same time. One alone has all devices; several have a GPU, or
            a share of the cores, each, and their output goes into `FOLDER.out`.
        num_gpus: GPUs that there are.

    Returns:
        What became of each run, in the order of the plan. After a signal, those that were not
        started have the exit code of an interrupted one.
    """
    exit_codes: dict[Path, int] = {run.folder: 0 for run in plan if has_finished(run)}
    for run in plan:
        if run.folder in exit_codes:
            print(f"{run.folder}: has finished; not trained again")
    waiting = [run for run in plan if run.folder not in exit_codes]
    started: list[_Started] = []
    with _stop_signals_passed_on(started) as stopped_by:
        while started or (waiting and not stopped_by):
            while waiting and len(started) < at_once and not stopped_by:
                slot = min(set(range(at_once)) - {one.slot for one in started})
                started.append(_start(waiting.pop(0), slot, at_once, num_gpus))
            time.sleep(POLL_SECONDS)
            for one in [one for one in started if one.process.poll() is not None]:
                started.remove(one)
                exit_codes[one.run.folder] = one.process.returncode
                print(f"{one.run.folder}: ended with exit code {one.process.returncode}")
    interrupted = 128 + stopped_by[0] if stopped_by else 1
    return [
        Outcome(
            run=run,
            exit_code=exit_codes.get(run.folder, interrupted),
            finished=has_finished(run),
        )
        for run in plan
    ]


def _start(run: PlannedRun, slot: int, at_once: int, num_gpus: int) -> _Started:
    """Starts the process of a run, alone on its share of the devices."""
    print(f"{run.folder}: starts", flush=True)
    environment = dict(os.environ)
    if at_once > 1:
        environment |= _share_of_devices(os.environ, slot, at_once, num_gpus)
    command = [sys.executable, "-m", "flame_accel", "train", *run.options]
    if at_once == 1:
        return _Started(run=run, process=subprocess.Popen(command, env=environment), slot=slot)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run.folder}.out", "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    return _Started(run=run, process=process, slot=slot)


def _share_of_devices(
    environment: Mapping[str, str], slot: int, at_once: int, num_gpus: int
) -> dict[str, str]:
    """Variables that give one of several runs a GPU, or a share of the cores."""
    if num_gpus:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(num_gpus)]
        return {"CUDA_VISIBLE_DEVICES": devices[slot % num_gpus].strip(), "NGPU": "1"}
    threads = max(count_cores_in_affinity_mask() // at_once, 1)
    return {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or str(threads)}


@contextmanager
def _stop_signals_passed_on(started: Sequence[_Started]) -> Iterator[list[int]]:
    """Passes SIGTERM and SIGINT on to the runs, which save and end; yields those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for one in started:
            one.process.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, pass_on) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
