"""How a process computes on CPUs: oneDNN for products of fp32 matrices, and memory that it keeps.

Set while PyTorch implementations stand in for fla's operators (`install`).
"""

import ctypes
import platform
from collections.abc import Callable
from functools import partial

LARGEST_KEPT = 32 * 2**20
"""Bytes of freed memory that stays in the process; glibc raises its own limit up to this."""


def keep_freed_memory_in_process() -> None:
    """Makes glibc keep freed memory up to `LARGEST_KEPT` bytes, for the whole process.

    Every step of a training run allocates what the last one freed. Taking the pages back from the
    kernel each time cost a quarter of a step on two cores (33,000 page faults). Peaks of training
    do not grow. But a hole that a tensor leaves between two that stay is often never filled by one
    of its size: `posix_memalign`, which PyTorch calls, looks for one that is larger by its
    alignment. Generation with gradients, whose states of 50 MB all stay, grew by 247 MB a token if
    everything was kept, and grows by 98 with this limit (109 with glibc's own settings).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, LARGEST_KEPT)


def use_onednn_for_fp32_if_exact() -> Callable[[], None]:
    """Makes PyTorch multiply fp32 matrices with oneDNN on CPUs where that is exact.

    On CPUs with AVX512 it can be two to three times as fast as MKL. PyTorch asks it only at the
    precision "medium", which allows bf16 inside; oneDNN makes use of that on CPUs with AMX alone.
    A number that bf16 cannot hold tells the two apart.

    Returns:
        What restores the precision from before.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    restore = partial(torch.set_float32_matmul_precision, before)
    if torch.cuda.is_available():
        return restore
    torch.set_float32_matmul_precision("medium")
    exact = all(
        torch.equal(x @ torch.eye(x.shape[-1]), x)
        for x in (torch.full(shape, 1 + 2.0**-20) for shape in ((64, 64), (512, 256), (8, 32, 16)))
    )
    if not exact:
        restore()
    return restore
