"""Small exchanges between ranks that give tensors back; with one rank, none happens."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type for sums that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_over_ranks(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The element-wise sum of every rank's tensor, on every rank."""
    if accelerator.num_processes == 1:
        return tensor
    total: Any = accelerator.reduce(tensor, "sum")
    return total


def gather_over_ranks(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Every rank's tensor [n], one after the other [ranks * n], on every rank."""
    if accelerator.num_processes == 1:
        return tensor
    gathered: Any = accelerator.gather(tensor)
    return gathered
