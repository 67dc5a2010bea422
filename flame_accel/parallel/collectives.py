"""Small exchanges between ranks that give tensors back; with one rank, none happens."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel.parallel.ranks import tp_size


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type for sums that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def all_reduce_sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The element-wise sum of every data rank's tensor, on every rank.

    The peers of tensor parallelism hold the same tensor, which counts once.
    """
    if accelerator.num_processes == 1:
        return tensor
    total: Any = accelerator.reduce(tensor, "sum")
    peers = tp_size(accelerator)
    if peers == 1:
        return total
    return total / peers if total.is_floating_point() else total // peers


def all_gather(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Every rank's tensor [n], one after the other [ranks * n], on every rank."""
    if accelerator.num_processes == 1:
        return tensor
    gathered: Any = accelerator.gather(tensor)
    return gathered
