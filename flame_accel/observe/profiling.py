"""Traces of the PyTorch profiler and snapshots of device memory, every so many steps.

    <save_traces_folder>/step-N/rank-R.json.gz           a Chrome trace of the N-th step
    <save_memory_snapshot_folder>/step-N/rank-R.pickle   allocations up to its end
    ... /step-N-out-of-memory/rank-R.pickle              up to where memory ran out in it

Traces open in https://ui.perfetto.dev and chrome://tracing, snapshots in
https://pytorch.org/memory_viz. A file is there whole or not at all.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from flame_accel.config import ProfilingConfig, UserError
from flame_accel.files import replace_file
from flame_accel.observe.console import get_logger

WARMUP_STEPS = 3
"""Steps before a traced one in which the profiler runs already, so that the trace is not of its
start; fewer where traces are closer."""
MEMORY_EVENTS = 100_000
"""Allocations and releases that a snapshot goes back."""


class StepProfiler:
    """Told after each step; records what the options ask for."""

    def __init__(self) -> None:
        self.recorders: list[Callable[[], None]] = []

    def step(self) -> None:
        """Marks the end of a step."""
        for record in self.recorders:
            record()


@contextmanager
def profile_steps(
    accelerator: Accelerator, config: ProfilingConfig, run_folder: Path, *, step: int
) -> Iterator[StepProfiler]:
    """Profiles the steps inside, and writes a memory snapshot if they run out of memory.

    Args:
        accelerator: Of the run.
        config: What to record, where and how often.
        run_folder: Of the run.
        step: Steps that the run has completed.
    """
    profiler = StepProfiler()
    rank = accelerator.process_index
    with ExitStack() as recording:
        if config.enable_profiling:
            folder = run_folder / config.save_traces_folder
            activities = {ProfilerActivity.CPU}
            if accelerator.device.type == "cuda":
                activities.add(ProfilerActivity.CUDA)
            profiler.recorders.append(
                recording.enter_context(
                    _tracing(folder, activities, rank=rank, every=config.profile_freq, step=step)
                )
            )
        # entered last: the first to see that memory ran out
        if config.enable_memory_snapshot:
            folder = run_folder / config.save_memory_snapshot_folder
            profiler.recorders.append(
                recording.enter_context(
                    _recording_memory(folder, rank=rank, every=config.profile_freq, step=step)
                )
            )
        yield profiler


@contextmanager
def _tracing(
    folder: Path, activities: set[ProfilerActivity], *, rank: int, every: int, step: int
) -> Iterator[Callable[[], None]]:
    def plan(index: int) -> ProfilerAction:
        """What to do in the step `step + index + 1`."""
        ahead = -(step + index + 1) % every
        if ahead == 0:
            return ProfilerAction.RECORD_AND_SAVE
        return ProfilerAction.WARMUP if ahead <= WARMUP_STEPS else ProfilerAction.NONE

    def save(tracer: profile) -> None:
        path = folder / f"step-{step + tracer.step_num}" / f"rank-{rank}.json.gz"
        with _replace_and_log(path) as temporary:
            tracer.export_chrome_trace(str(temporary))

    # the profiler's own library says on standard error when it starts and stops
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    # each trace is of one step, and none is asked for its events later
    warnings.filterwarnings("ignore", message="Warning: Profiler clears events")
    with profile(activities=activities, schedule=plan, on_trace_ready=save) as tracer:
        try:
            yield tracer.step
        finally:
            # what is being recorded now is not a whole step
            tracer.on_trace_ready = None


@contextmanager
def _recording_memory(
    folder: Path, *, rank: int, every: int, step: int
) -> Iterator[Callable[[], None]]:
    completed = step

    def save(name: str) -> None:
        with _replace_and_log(folder / name / f"rank-{rank}.pickle") as temporary:
            torch.cuda.memory._dump_snapshot(str(temporary))

    def advance() -> None:
        nonlocal completed
        completed += 1
        if completed % every == 0:
            save(f"step-{completed}")

    torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
    try:
        yield advance
    except torch.OutOfMemoryError:
        save(f"step-{completed + 1}-out-of-memory")
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def check_memory_snapshot_support(device: torch.device, config: ProfilingConfig) -> None:
    """Checks that a device records memory snapshots, if they are asked for.

    Raises:
        UserError: It does not.
    """
    if config.enable_memory_snapshot and device.type != "cuda":
        raise UserError(
            f"memory snapshots are recorded by CUDA's allocator; this run is on {device.type}",
            where="profiling.enable_memory_snapshot",
            remedy="remove the option; memory/peak_gib of metrics.jsonl is measured on any device",
        )


@contextmanager
def _replace_and_log(path: Path) -> Iterator[Path]:
    """`replace_file`, with the folder created and a log line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        yield temporary
    get_logger().info("profiling: %s", path)
