"""SwiGLU, and the linear map after it: outputs and all gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flame_accel.kernels.modules import activation as torch_activation
from tests.helpers.fused_kernels import DEVICE, compare, draw, each_dtype


@each_dtype
def test_swiglu(fused, dtype):
    inputs = [draw(5, 700, dtype=dtype, seed=seed) for seed in (0, 1)]
    compare(fused("swiglu").swiglu, torch_activation.swiglu, inputs, dtype)


@each_dtype
@pytest.mark.parametrize("biased", [False, True])
def test_swiglu_linear(fused, dtype, biased):
    inputs = [draw(2, 5, 96, dtype=dtype, seed=seed) for seed in (0, 1)]
    inputs += [draw(40, 96, dtype=dtype, seed=2), *[draw(40, dtype=dtype, seed=3)] * biased]

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, y, weight, bias=None: function(x, y, weight, bias)

    ours = call(fused("swiglu").swiglu_linear)
    compare(ours, call(torch_activation.swiglu_linear), inputs, dtype)


def test_swiglu_linear_follows_autocast_and_keeps_the_dtype_of_the_weights_gradient(fused):
    x, y = (draw(4, 32, dtype=torch.float32, seed=seed) for seed in (0, 1))
    weight = draw(8, 32, dtype=torch.float32, seed=2)
    with torch.autocast(DEVICE, torch.float16):
        found = fused("swiglu").swiglu_linear(x, y, weight, None)
    assert found.dtype is torch.float16
    found.sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32


def test_inputs_of_two_dtypes_are_not_supported(fused):
    x = torch.zeros(2, 8)
    assert not fused("swiglu").supports_swiglu_same_shape_and_dtype(x, x.double(), None)
