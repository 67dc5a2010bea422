"""Name, memory and synchronization of the GPU; on a machine without one, zeros and no waiting."""

import torch


def device_name() -> str:
    """Name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def allocated_bytes() -> int:
    """Memory of the device that tensors of this process hold."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak_bytes() -> int:
    """Largest `allocated_bytes` since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def reset_peak_memory() -> None:
    """Begins a new measurement of `peak_bytes`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
