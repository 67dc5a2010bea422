"""RWKV4's attention equals its formula in double precision, and goes on from a state."""

import torch
from fla.ops.rwkv4 import fused_recurrent_rwkv4
from torch import Tensor

from tests.helpers.gradients import assert_close, outputs_and_gradients

ROWS, TOKENS, WIDTH = 2, 30, 6


def run_from_nothing(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    state = torch.zeros(ROWS, 3, 1, WIDTH).to(k)
    state[:, 2] = -1e30
    return fused_recurrent_rwkv4(w, u, k, v, state)[0]


def formula(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    outputs = []
    for t in range(k.shape[1]):
        distance = torch.arange(t - 1, -1, -1).view(-1, 1)
        logits = torch.cat((k[:, :t] - distance * w.exp(), (u + k[:, t]).unsqueeze(1)), 1)
        outputs.append((logits.softmax(1) * v[:, : t + 1]).sum(1))
    return torch.stack(outputs, 1)


def test_outputs_and_gradients_equal_the_formula():
    torch.manual_seed(0)
    w, u = torch.randn(2, WIDTH).unbind()
    k, v = 5 * torch.randn(ROWS, TOKENS, WIDTH), torch.randn(ROWS, TOKENS, WIDTH)
    expected = outputs_and_gradients(formula, [x.double() for x in (w, u, k, v)])
    found = outputs_and_gradients(run_from_nothing, [w, u, k, v])
    assert_close([x.double() for x in found], expected, 1e-5)


def test_a_state_goes_on():
    torch.manual_seed(0)
    w, u, k = torch.randn(WIDTH), torch.randn(WIDTH), torch.randn(ROWS, TOKENS, WIDTH)
    v, state = torch.randn(ROWS, TOKENS, WIDTH), torch.rand(ROWS, 3, 1, WIDTH)
    o, final = fused_recurrent_rwkv4(w, u, k, v, state)
    first, middle = fused_recurrent_rwkv4(w, u, k[:, :11], v[:, :11], state)
    second, last = fused_recurrent_rwkv4(w, u, k[:, 11:], v[:, 11:], middle)
    assert_close([torch.cat((first, second), 1), last], [o, final], 1e-6)
