"""What is set for computing on CPUs: exact products, and memory that goes back where it must."""

import ctypes
import platform

import pytest
import torch

from flame_accel import kernels
from flame_accel.kernels.cpu_settings import LARGEST_KEPT

pytestmark = pytest.mark.usefixtures("torch_kernels")


class HeapStatistics(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator without this setting")
def test_holes_of_large_tensors_go_back_to_the_kernel():
    kernels.install("torch")
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = HeapStatistics

    def grown_by_tensors_that_stay(size: int) -> int:
        """Bytes that the process grew by for ten, each made while another one was there."""
        before, stay = mallinfo2(), []
        for _ in range(10):
            temporary = torch.empty(size, dtype=torch.uint8)
            stay.append(torch.empty(size, dtype=torch.uint8))
            del temporary
        after = mallinfo2()
        return after.arena + after.hblkhd - before.arena - before.hblkhd

    # whether a hole happens to be filled depends on where it begins
    for size in range(LARGEST_KEPT, LARGEST_KEPT + 64, 16):
        assert grown_by_tensors_that_stay(size) < 12 * size


def test_products_of_fp32_matrices_stay_exact_to_more_bits_than_bf16_has():
    kernels.install("torch")
    x = torch.full((512, 256), 1 + 2.0**-20)
    assert torch.equal(x @ torch.eye(256), x)
    kernels.uninstall()
    assert torch.get_float32_matmul_precision() == "highest"
