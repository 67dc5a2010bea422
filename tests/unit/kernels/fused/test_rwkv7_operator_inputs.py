"""What RWKV-7's operator gets of each head, and the gradients, are those of the formulas."""

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.fused_kernels import TOLERANCE, draw, each_dtype

ROWS, HEADS, WIDTH = 9, 2, 16
N = HEADS * WIDTH


def reference(inputs: list[Tensor | None]) -> list[Tensor]:
    """Log decays, keys, values, and what is erased and written."""
    k, v, v_first, w_raw, a_raw, mix_raw, k_k, k_a = inputs
    assert k is not None and v is not None and w_raw is not None and a_raw is not None
    a = a_raw.sigmoid()
    kappa = (k * k_k).view(-1, HEADS, WIDTH)
    kappa = (kappa / (kappa.square().sum(-1, keepdim=True) + 1e-6).sqrt()).view(-1, N)
    if v_first is not None and mix_raw is not None:
        v = v + (v_first - v) * mix_raw.sigmoid()
    return [-math.exp(-0.5) * w_raw.sigmoid(), k * (1 + (a - 1) * k_a), v, -kappa, kappa * a]


@each_dtype
@pytest.mark.parametrize("is_first", [True, False])
def test_inputs_and_gradients_with_and_without_values_of_the_first_layer(fused, dtype, is_first):
    module = fused("rwkv7_operator_inputs")
    inputs: list[Tensor | None] = [draw(ROWS, N, dtype=dtype, seed=i) for i in range(6)]
    inputs += [draw(N, dtype=torch.float32, seed=6 + i) for i in range(2)]
    if is_first:
        inputs[2] = inputs[5] = None
    ours = module.HeadInputs(*(None if x is None else x.detach() for x in inputs))
    wide = [None if x is None else x.detach().float().requires_grad_() for x in inputs]
    expected = reference(wide)
    found = module.prepare_operator_inputs(ours, WIDTH)
    cotangents = [draw(ROWS, N, dtype=dtype, seed=20 + i).detach() for i in range(5)]
    after = [draw(ROWS, N, dtype=dtype, seed=30 + i).detach() for i in range(2)]
    grads = module.OperatorInputs(*cotangents)
    gradients = module.operator_input_gradients(ours, WIDTH, grads, *after)
    totals = [x.float() for x in cotangents]
    totals[1], totals[2] = totals[1] + after[0].float(), totals[2] + after[1].float()
    torch.autograd.backward(expected, totals)
    pairs = [*zip(found, expected, strict=True)]
    pairs += [(a, b.grad) for a, b in zip(gradients, wide, strict=True) if b is not None]
    for number, (a, b) in enumerate(pairs):
        error = (a.float() - b).norm() / b.norm()
        assert error < TOLERANCE[dtype], f"tensor {number}"
