"""One optimizer update: schedule, optimizer, and the step with its non-finite guard."""

from flame_accel.training.early_step import step_in_backward
from flame_accel.training.optimizer import build_optimizer
from flame_accel.training.schedule import learning_rate
from flame_accel.training.step import StepResult, train_step

__all__ = ["StepResult", "build_optimizer", "learning_rate", "step_in_backward", "train_step"]
