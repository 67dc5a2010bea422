"""One optimizer update: schedule, optimizer, and the step with its non-finite guard."""

from flame_accel.training.optimizer import build_optimizer
from flame_accel.training.optimizer_in_backward import optimizer_in_backward
from flame_accel.training.randomness import seed_process
from flame_accel.training.schedule import is_due, learning_rate
from flame_accel.training.step import StepResult, to_device, train_step

__all__ = [
    "StepResult",
    "build_optimizer",
    "is_due",
    "learning_rate",
    "optimizer_in_backward",
    "seed_process",
    "to_device",
    "train_step",
]
