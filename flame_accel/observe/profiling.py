"""Traces of the PyTorch profiler and snapshots of device memory, every N steps.

    <save_traces_folder>/step-N/rank-R.json.gz           a Chrome trace of the N-th step
    <save_memory_snapshot_folder>/step-N/rank-R.pickle   allocations until its end
    ... /step-N-out-of-memory/rank-R.pickle              allocations until the out-of-memory error

Traces open in https://ui.perfetto.dev and chrome://tracing, snapshots in
https://pytorch.org/memory_viz. Files are written atomically.
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
"""Number of warm-up steps before a traced step; fewer where traces are closer."""
MEMORY_EVENTS = 100_000
"""Number of allocations and releases that a snapshot contains at most."""


class StepProfiler:
    """Is called after each step and runs the enabled recorders."""

    def __init__(self) -> None:
        self.recorders: list[Callable[[], None]] = []

    def step(self) -> None:
        """Marks the end of a step."""
        for record in self.recorders:
            record()


@contextmanager
def profile_steps(
    accelerator: Accelerator, config: ProfilingConfig, run_folder: Path, step: int
) -> Iterator[StepProfiler]:
    """Profiles the steps inside the block; out of memory also leaves a snapshot.

    Args:
        accelerator: The run's accelerator.
        config: Options of section profiling.
        run_folder: Folder that the profiles are written below.
        step: Number of completed steps.
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
                    _trace_steps(
                        folder, activities, rank=rank, interval=config.profile_freq, step=step
                    )
                )
            )
        # entered last, so that it is the first to see an out-of-memory error
        if config.enable_memory_snapshot:
            folder = run_folder / config.save_memory_snapshot_folder
            profiler.recorders.append(
                recording.enter_context(
                    _record_memory_snapshots(
                        folder, rank=rank, interval=config.profile_freq, step=step
                    )
                )
            )
        yield profiler


@contextmanager
def _trace_steps(
    folder: Path, activities: set[ProfilerActivity], *, rank: int, interval: int, step: int
) -> Iterator[Callable[[], None]]:
    def action_in_step(index: int) -> ProfilerAction:
        """The profiler's action in step `step + index + 1`."""
        ahead = -(step + index + 1) % interval
        if ahead == 0:
            return ProfilerAction.RECORD_AND_SAVE
        return ProfilerAction.WARMUP if ahead <= WARMUP_STEPS else ProfilerAction.NONE

    def export_trace_to_folder(tracer: profile) -> None:
        path = folder / f"step-{step + tracer.step_num}" / f"rank-{rank}.json.gz"
        with _replace_file_and_log(path) as temporary:
            tracer.export_chrome_trace(str(temporary))

    # the profiler's own library logs its start and stop on standard error
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    # each trace covers one step, and its events are not read later
    warnings.filterwarnings("ignore", message="Warning: Profiler clears events")
    with profile(
        activities=activities, schedule=action_in_step, on_trace_ready=export_trace_to_folder
    ) as tracer:
        try:
            yield tracer.step
        finally:
            # the step that is being recorded is not complete
            tracer.on_trace_ready = None


@contextmanager
def _record_memory_snapshots(
    folder: Path, *, rank: int, interval: int, step: int
) -> Iterator[Callable[[], None]]:
    completed = step

    def dump_snapshot_to_folder(name: str) -> None:
        with _replace_file_and_log(folder / name / f"rank-{rank}.pickle") as temporary:
            torch.cuda.memory._dump_snapshot(str(temporary))

    def count_step_and_dump_if_due() -> None:
        nonlocal completed
        completed += 1
        if completed % interval == 0:
            dump_snapshot_to_folder(f"step-{completed}")

    torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
    try:
        yield count_step_and_dump_if_due
    except torch.OutOfMemoryError:
        dump_snapshot_to_folder(f"step-{completed + 1}-out-of-memory")
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def check_memory_snapshot_support(device: torch.device, config: ProfilingConfig) -> None:
    """Checks that the device supports memory snapshots, if these are enabled.

    Raises:
        UserError: It does not support them.
    """
    if config.enable_memory_snapshot and device.type != "cuda":
        raise UserError(
            f"memory snapshots need CUDA's allocator; this run is on {device.type}",
            where="profiling.enable_memory_snapshot",
            remedy="remove the option; memory/peak_gib of metrics.jsonl is measured on any device",
        )


@contextmanager
def _replace_file_and_log(path: Path) -> Iterator[Path]:
    """`replace_file`, with the folder created and a log line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        yield temporary
    get_logger().info("profiling: %s", path)
