"""DeepSpeed's ZeRO behind the same step: its configuration, and what its own step leaves behind."""

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the model; its backward pass then takes the optimizer's step."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def read_deepspeed_step(accelerator: Accelerator, model: nn.Module) -> tuple[Tensor, Tensor]:
    """What the step inside the last `accelerator.backward` did.

    Returns:
        The gradient's norm before clipping, and 1.0 if the update was skipped, else 0.0; both
        0-dimensional and on the device.
    """
    raise NotImplementedError
