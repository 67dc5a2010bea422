"""Data whose updates are to be skipped: wherever it is read, the gradient is infinite.

As a program it is train.py with such data, of the steps BAD_STEPS on the ranks BAD_RANKS.
"""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def bad_data(steps: Collection[int]) -> Iterator[None]:
    """In the block, what a run reads in these steps of its data gives infinite gradients.

    Args:
        steps: Counted in the data, from 1: after a rewind they are not those of the run.
    """
    from flame_accel import data, train

    build, compute = data.build_step_batches, train.train_step
    batches: Any = None

    def build_and_keep(*arguments: Any, **options: Any) -> Any:
        nonlocal batches
        batches = build(*arguments, **options)
        return batches

    def step(accelerator: Any, *arguments: Any, **options: Any) -> Any:
        backward = accelerator.backward
        if batches.state_dict()["steps"] in steps:
            accelerator.backward = lambda loss: backward(loss * float("inf"))
        try:
            return compute(accelerator, *arguments, **options)
        finally:
            accelerator.backward = backward

    with (
        mock.patch.object(data, "build_step_batches", build_and_keep),
        mock.patch.object(train, "train_step", step),
    ):
        yield


if __name__ == "__main__":
    from flame_accel.train_process import run_training

    is_bad_here = os.environ["RANK"] in os.environ["BAD_RANKS"].split()
    with bad_data([int(step) for step in os.environ["BAD_STEPS"].split()] if is_bad_here else []):
        run_training(sys.argv[1:])
