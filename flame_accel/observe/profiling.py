"""Traces of the PyTorch profiler and snapshots of device memory, every so many steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from flame_accel.config import ProfilingConfig


class StepProfiler:
    """Told after each step; records what the options ask for."""

    def step(self) -> None:
        """Marks the end of a step."""


@contextmanager
def profile_steps(
    accelerator: Accelerator, config: ProfilingConfig, run_folder: Path
) -> Iterator[StepProfiler]:
    """Profiles the steps inside, and writes a memory snapshot if they run out of memory."""
    yield StepProfiler()
