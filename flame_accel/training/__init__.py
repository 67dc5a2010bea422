"""One optimizer update and what surrounds it: schedule, optimizer, the step, the guard against non-finite gradients."""

from flame_accel.training.optimizer import build_optimizer
from flame_accel.training.schedule import learning_rate
from flame_accel.training.step import StepResult, train_step

__all__ = ["StepResult", "build_optimizer", "learning_rate", "train_step"]
