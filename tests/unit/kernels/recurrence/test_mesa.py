"""MesaNet equals a least-squares fit solved exactly: outputs, states, all gradients."""

import pytest
import torch
from fla.ops.mesa_net.naive import naive_mesa_net_decoding_one_step
from torch import Tensor

from flame_accel.kernels.recurrence import mesa
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
from tests.helpers.recurrence import unit


def draw_inputs(n: int, t: int) -> Tensors:
    s = (n, t, H)
    return [unit(*s, K), unit(*s, K), torch.randn(*s, V), log_decay(*s), torch.rand(*s)]


def draw_states(n: int) -> Tensors:
    root = torch.randn(n, H, K, K)
    return [root @ root.mT / K, torch.randn(n, H, K, V)]


def run_operator(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, *states = mesa.chunk_mesa_net(*x, *p, *h, True, cu_seqlens=cu_seqlens)
    return o, states


def run_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    (q, k, v, g, beta), (h_kk, h_kv), outputs = x, h, []
    for t in range(q.shape[1]):
        decay, key = g[:, t, :, None, None].exp(), (k * beta.unsqueeze(-1))[:, t].unsqueeze(-1)
        h_kk = h_kk * decay + key * k[:, t].unsqueeze(-2)
        h_kv = h_kv * decay + key * v[:, t].unsqueeze(-2)
        fit = torch.linalg.solve(h_kk + torch.diag_embed(p[0]), q[:, t].unsqueeze(-1))
        outputs.append((fit * h_kv).sum(-2))
    return torch.stack(outputs, 1), [h_kk, h_kv]


class TestMesaNet(OperatorLaws):
    operator = Operator(
        draw_inputs, lambda: [0.5 + torch.rand(H, K)], draw_states, run_operator, run_reference
    )


def test_mesa_step_equals_reference():
    torch.manual_seed(0)
    x, lamb, h = draw_inputs(3, 1), 0.5 + torch.rand(H, K), draw_states(3)
    o, states = run_reference(x, [lamb], h)
    q, k, v, g, beta = (y[:, 0] for y in x)
    actual = mesa.mesa_net_decoding_one_step(q, k, v, g, lamb, beta, *h)
    assert_close(list(actual), [o[:, 0], *states])


def test_mesa_gradients_do_not_depend_on_their_scale():
    torch.manual_seed(0)
    x, lamb = draw_inputs(2, 70), torch.rand(H, K) + 0.5
    x = [y.requires_grad_() for y in x]
    o, _, _ = mesa.chunk_mesa_net(*x, lamb)
    weights = torch.randn(o.shape)
    expected = torch.autograd.grad(o, x, weights, retain_graph=True)
    actual = torch.autograd.grad(o, x, weights * 1e-12)
    assert_close([1e12 * y for y in actual], list(expected))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_step_starts_where_fla_does(steps: int):
    torch.manual_seed(0)
    x, lamb, h = [y[:, 0] for y in draw_inputs(3, 1)], 0.5 + torch.rand(H, K), draw_states(3)
    q, k, v, g, beta = x
    arguments = (q, k, v[..., :K], g, lamb, beta, h[0], h[1][..., :K], steps)
    expected = naive_mesa_net_decoding_one_step(*arguments)
    # fla adds 1e-5 to denominators
    assert_close(list(mesa.mesa_net_decoding_one_step(*arguments)), list(expected), 1e-3)
