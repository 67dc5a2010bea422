"""When a run saves: every N steps, or every N seconds by the main process's clock."""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

from flame_accel.config import CheckpointConfig
from flame_accel.parallel import all_gather_concatenated


class SaveSchedule:
    """Decides after each step whether a checkpoint is due. The last step always has one.

    With an interval in seconds, the main process reads its clock only at logged steps, where all
    ranks synchronise with the device anyway, and tells the others.

    Args:
        accelerator: The run's accelerator.
        config: Options of section checkpoint.
        total_steps: Number of training steps.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: CheckpointConfig,
        *,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.total_steps = total_steps
        self.clock = clock
        self.saved_at = clock()

    def saves_before_last_step(self, completed_steps: int) -> bool:
        """Whether a checkpoint may be due between the next step and the last one."""
        config = self.config
        if not config.enable_checkpoint or config.interval_type == "seconds" or config.keep_best:
            return config.enable_checkpoint
        return (completed_steps // config.interval + 1) * config.interval < self.total_steps

    def is_due_on_all_ranks(
        self,
        completed_steps: int,
        *,
        step_was_logged: bool,
        run_stops: bool = False,
        is_best: bool = False,
    ) -> bool:
        """Whether to save after a step. Every rank must call it with the same arguments.

        Args:
            completed_steps: Number of completed steps, this one included.
            step_was_logged: Whether the step was logged, so that the ranks have just synchronised.
            run_stops: Whether the run ends after this step.
            is_best: Whether its validation found the best model so far.
        """
        if not self.config.enable_checkpoint:
            return False
        if run_stops or is_best or completed_steps == self.total_steps:
            return True
        if self.config.interval_type == "step":
            return completed_steps % self.config.interval == 0
        if not step_was_logged:
            return False
        now = self.clock()
        due = now - self.saved_at >= self.config.interval
        decisions = all_gather_concatenated(
            self.accelerator, torch.tensor([due], device=self.accelerator.device, dtype=torch.uint8)
        )
        if not decisions[0].item():
            return False
        self.saved_at = now
        return True
