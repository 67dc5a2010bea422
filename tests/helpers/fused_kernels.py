"""Compares our Triton kernels with PyTorch: on a GPU as compiled, elsewhere by the interpreter."""

import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def load(name: str) -> ModuleType:
    """A module of the fused kernels, whose kernels are interpreted if there is no GPU."""
    spec = importlib.util.find_spec(f"flame_accel.kernels.fused.{name}")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    return x.requires_grad_()


def compare(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: list[Tensor],
    dtype: torch.dtype,
) -> None:
    """Outputs and gradients of both; the reference in fp32."""
    wide = [x.detach().float().requires_grad_() for x in inputs]
    found, expected = ours(*inputs), reference(*wide)
    found = found if isinstance(found, tuple) else (found,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert all(x.dtype == dtype for x in found)
    cotangents = [draw(*x.shape, dtype=dtype, seed=9 + i).detach() for i, x in enumerate(expected)]
    torch.autograd.backward(found, cotangents)
    torch.autograd.backward(expected, [x.float() for x in cotangents])
    pairs = [*zip(found, expected, strict=True)]
    pairs += [(x.grad, y.grad) for x, y in zip(inputs, wide, strict=True)]
    for number, (a, b) in enumerate(pairs):
        assert a is not None and b is not None and a.shape == b.shape
        error = ((a.float() - b).norm() / b.norm()).item()
        assert error < TOLERANCE[dtype], f"tensor {number}: {error}"
