"""RMS norms and layer norms, with a residual or a gate: outputs and all gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.modules import norm as torch_norm
from tests.helpers.fused_kernels import compare, draw, each_dtype


@each_dtype
@pytest.mark.parametrize("width", [32, 96, 1024])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(fused, dtype, width, prenorm, residual):
    ours = fused("norm").rms_norm
    inputs = [draw(3, 11, width, dtype=dtype, seed=0), draw(width, dtype=dtype, seed=1)]
    if residual:
        inputs.append(draw(3, 11, width, dtype=dtype, seed=2))

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, weight: Tensor, other: Tensor | None = None) -> Any:
            return function(x, weight, None, other, 1e-5, prenorm)

        return run

    compare(call(ours), call(torch_norm.rms_norm), inputs, dtype)


@each_dtype
@pytest.mark.parametrize("width", [96, 1024])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(fused, dtype, width, biased, residual):
    inputs = [draw(3, 11, width, dtype=dtype, seed=0), draw(width, dtype=dtype, seed=1)]
    inputs += [draw(width, dtype=dtype, seed=2)] if biased else []
    inputs += [draw(3, 11, width, dtype=dtype, seed=3)] if residual else []

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, weight: Tensor, *others: Tensor) -> Any:
            bias = others[0] if biased else None
            # far from zero, as a mean is
            return function(x + 3, weight, bias, others[-1] if residual else None, 1e-5, residual)

        return run

    compare(call(fused("norm").layer_norm), call(torch_norm.group_norm), inputs, dtype)


@each_dtype
@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm_gated(fused, dtype, activation, weighted):
    ours = fused("norm").rms_norm_gated
    inputs = [draw(2, 7, 3, 64, dtype=dtype, seed=seed) for seed in (0, 1)]
    if weighted:
        inputs.append(draw(64, dtype=dtype, seed=2))

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, gate: Tensor, weight: Tensor | None = None) -> Any:
            return function(x, gate, weight, None, activation)

        return run

    compare(call(ours), call(torch_norm.rms_norm_gated), inputs, dtype)


@pytest.mark.parametrize("prenorm", [False, True])
def test_a_residual_of_another_dtype_keeps_its_dtype(fused, prenorm):
    x = draw(4, 32, dtype=torch.float32, seed=0)
    residual = draw(4, 32, dtype=torch.float64, seed=1)
    weight = draw(32, dtype=torch.float32, seed=2)
    found = fused("norm").rms_norm(x, weight, None, residual, prenorm=prenorm)
    y, total = found if prenorm else (found, residual)
    assert y.dtype is torch.float32 and total.dtype is torch.float64
    y.sum().backward()
    assert residual.grad is not None and residual.grad.dtype is torch.float64
    assert x.grad is not None and torch.allclose(residual.grad.float(), x.grad)


def test_many_rows_share_programs(fused):
    module = fused("norm")
    module.BACKWARD_PROGRAMS = 3
    inputs = [draw(50, 2048, dtype=torch.float32, seed=0), draw(2048, dtype=torch.float32, seed=1)]
    compare(
        lambda x, weight: module.rms_norm(x, weight, None),
        lambda x, weight: torch_norm.rms_norm(x, weight, None),
        inputs,
        torch.float32,
    )


def test_calls_that_the_kernels_do_not_support_are_recognized(fused):
    module = fused("norm")
    x, weight = torch.zeros(2, 8), torch.ones(8)
    assert module.supports_norm_of_limited_width(x, weight, weight)
    assert not module.supports_norm_of_limited_width(torch.zeros(2, 9000), None, None)
    assert module.supports_rms_norm_gated_options(x, x, weight, None, "silu")
    assert not module.supports_rms_norm_gated_options(x, x, weight, None, "gelu")
    assert not module.supports_rms_norm_gated_options(x, x, weight, weight, "silu")
    assert not module.supports_rms_norm_gated_options(x, x, weight, None, residual=x)
