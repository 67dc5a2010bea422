"""Cyclic flow attention equals fla's reference: outputs, states, and all gradients."""

import torch
from fla.ops.cyfa.naive import naive_recurrent_cyfa
from torch import Tensor

from flame_accel.kernels.recurrence import cyfa
from tests.helpers.gradients import assert_close
from tests.helpers.operator_laws import (
    H,
    K,
    Operator,
    OperatorLaws,
    Result,
    Tensors,
    V,
    log_decay,
)

PERIOD = 5


def draw_inputs(n: int, t: int) -> Tensors:
    s = (n, t, H)
    vectors = [torch.randn(*s, K), torch.randn(*s, K), torch.randn(*s, V)]
    return [*vectors, log_decay(*s), torch.rand(*s), torch.rand(*s)]


def draw_parameters() -> Tensors:
    return [torch.randn(H, PERIOD, PERIOD), torch.rand(K) + 0.5, torch.rand(K) + 0.5]


def draw_states(n: int) -> Tensors:
    slots = PERIOD + 1
    return [torch.randn(n, H, K, slots), torch.randn(n, H, slots, V), 9 * torch.rand(n, H)]


def run_operator(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, states = cyfa.chunk_cyfa(*x, *p, 1e-5, 1e-5, None, tuple(h), True, cu_seqlens)
    return o, list(states)


def run_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    o, states = naive_recurrent_cyfa(*x, *p, 1e-5, 1e-5, None, tuple(h), True)
    return o, list(states)


class TestCyfa(OperatorLaws):
    operator = Operator(draw_inputs, draw_parameters, draw_states, run_operator, run_reference)


def test_phase_stays_exact_late_in_a_sequence():
    torch.manual_seed(0)
    x, p, h = draw_inputs(2, 20), draw_parameters(), draw_states(2)
    h[2] = torch.tensor([[0.25, 1.5]] * 2)
    o, _ = run_operator(x, p, h)
    h[2] += PERIOD * 200_000
    later, _ = run_operator(x, p, h)
    assert_close([later], [o])
