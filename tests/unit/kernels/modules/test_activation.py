"""Activations and gated linear units."""

import torch
import torch.nn.functional as F

from flame_accel.kernels.modules import (
    activation,
)
from tests.helpers.gradients import assert_same_results, randn_each


def test_activations():
    x, y, weight, bias = randn_each((3, 5), (3, 5), (4, 5), (4,))
    assert_same_results(activation.sigmoid, torch.sigmoid, [x])
    assert_same_results(activation.swish, F.silu, [x])
    assert_same_results(activation.sqrelu, lambda x: x.clamp_min(0) ** 2, [x])
    assert_same_results(activation.gelu, lambda x: F.gelu(x, approximate="tanh"), [x])
    assert_same_results(
        activation.bias_gelu, lambda x, y: F.gelu(x + y, approximate="tanh"), [x, y]
    )
    assert_same_results(lambda x: activation.logsigmoid(x, 4.0), lambda x: F.logsigmoid(x) / 4, [x])
    assert_same_results(activation.swiglu, lambda x, y: F.silu(x) * y, [x, y])
    assert_same_results(activation.sigmoidglu, lambda x, y: torch.sigmoid(x) * y, [x, y])
    assert_same_results(
        activation.swiglu_linear,
        lambda x, y, w, b: (F.silu(x) * y) @ w.T + b,
        [x, y, weight, bias],
    )


def test_powglu_is_a_power_above_zero_and_swish_below():
    x, y = randn_each((3, 5), (3, 5))
    up, down = x.abs() + 0.1, -x.abs()
    assert_same_results(
        activation.powglu,
        lambda x, y: x ** (3 / (x.sqrt() + 1)) * torch.sigmoid(x) * y,
        [up, y],
    )
    assert_same_results(activation.powglu, lambda x, y: F.silu(x) * y, [down, y])
