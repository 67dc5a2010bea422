"""A fixture that gives fla its Triton functions."""

import importlib
from collections.abc import Iterator

import pytest
import torch

from flame_accel.kernels import install, uninstall
from flame_accel.kernels.tuning import (
    Tuner,
    detect_gpu_name_and_capability,
    install_autotune_hook,
    uninstall_autotune_hook,
)
from tests.helpers.triton_device import INTERPRETED


@pytest.fixture(scope="module")
def triton() -> Iterator[None]:
    """fla has its Triton functions, no kernel is tuned, ours multiply fp32 exactly."""
    # the first import installs what suits the machine
    importlib.import_module("fla")
    if INTERPRETED:
        uninstall()
        importlib.import_module("tests.helpers.triton_on_cpu")
    install("triton")
    if INTERPRETED:
        uninstall_autotune_hook()
    else:
        install_autotune_hook(Tuner(detect_gpu_name_and_capability(), fresh=True, tunes=False))
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    uninstall()
    install()
