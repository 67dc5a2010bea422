"""How long the processes of a run wait for each other."""

from accelerate import Accelerator

from flame_accel.config import CommConfig


def limit_waiting(accelerator: Accelerator, comm: CommConfig) -> None:
    """Shortens the longest wait to that of training, once the first step has been taken."""
