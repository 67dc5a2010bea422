"""Fixtures of tests of `parallel`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator

from flame_accel.config import CommConfig, TrainingConfig
from flame_accel.parallel import build_accelerator


@pytest.fixture
def build_on_cpu(tmp_path: Path) -> Iterator[Callable[..., Accelerator]]:
    """`build_on_cpu(comm, **environment)`: an Accelerator of one process on the CPU.

    The environment has no variables of a launcher but those given; all is undone afterwards.
    """
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "TORCH_")):
            del os.environ[name]
    os.environ.update(ACCELERATE_USE_CPU="true", ACCELERATE_MIXED_PRECISION="no")
    reset()

    def build(comm: CommConfig | None = None, **environment: str):
        os.environ.update(environment)
        return build_accelerator(
            TrainingConfig(),
            comm or CommConfig(),
            run_folder=str(tmp_path),
        )

    yield build
    reset()
    os.environ.clear()
    os.environ.update(before)
