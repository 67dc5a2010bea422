"""When a run saves: every so many steps, or every so many seconds as ranks can agree on it."""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

from flame_accel.config import CheckpointConfig
from flame_accel.parallel import all_gather


class SaveSchedule:
    """Says after each step whether a checkpoint is due. The last step always has one.

    An interval in seconds ends at the first reported step after it: the main process looks at its
    clock only there, where all ranks wait for the device anyway, and the others are told.

    Args:
        accelerator: Of the run.
        config: Whether and how often.
        steps: Of the run.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: CheckpointConfig,
        *,
        steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.steps = steps
        self.clock = clock
        self.saved_at = clock()

    def is_due(self, step: int, *, reported: bool) -> bool:
        """Whether to save after a step; every rank must ask, with the same arguments.

        Args:
            step: Completed steps.
            reported: Whether the step has a record.
        """
        if not self.config.enable_checkpoint:
            return False
        if step == self.steps:
            return True
        if self.config.interval_type == "step":
            return step % self.config.interval == 0
        if not reported:
            return False
        now = self.clock()
        due = now - self.saved_at >= self.config.interval
        decisions = all_gather(
            self.accelerator, torch.tensor([due], device=self.accelerator.device, dtype=torch.uint8)
        )
        if not decisions[0].item():
            return False
        self.saved_at = now
        return True
