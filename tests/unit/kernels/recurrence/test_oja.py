"""The gated Oja rule equals its recurrence: outputs, states, all gradients."""

import torch
from fla.ops.gated_oja_rule import chunk_gated_oja_rule, fused_recurrent_gated_oja_rule
from torch import Tensor

from flame_accel.kernels.recurrence import oja
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


def draw_tokens(n: int, t: int) -> Tensors:
    q, k = torch.randn(2, n, t, H, K).unbind()
    values = unit(n, t, 2 * H, V)
    return [q, k, values, log_decay(n, t, 2 * H, V), torch.rand(n, t, 2 * H)]


def run_operator(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, state = oja.chunk_gated_oja_rule(
        *x, initial_state=h[0], output_final_state=True, cu_seqlens=cu_seqlens
    )
    assert state is not None
    return o, [state]


def run_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    q, k, v, g, beta = x
    q, k = (y.repeat_interleave(2, 2) for y in (q, k))
    (state,), outputs = h, []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp().unsqueeze(-2)
        error = k[:, t] - (state * v[:, t].unsqueeze(-2)).sum(-1)
        state = state + (beta[:, t, :, None] * error).unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-1) * state).sum(-2) * K**-0.5)
    return torch.stack(outputs, 1), [state]


class TestGatedOjaRule(OperatorLaws):
    operator = Operator(
        draw_tokens,
        lambda: [],
        lambda n: [torch.randn(n, 2 * H, K, V)],
        run_operator,
        run_reference,
    )


def test_norms_and_what_is_left_out():
    q, k, v, g, _ = draw_tokens(2, 20)
    ones = torch.ones_like(v[..., 0])
    expected, _ = chunk_gated_oja_rule(q, k, v, 0 * g, ones)
    assert_close([fused_recurrent_gated_oja_rule(q, k, v)[0]], [expected])
    normed = [x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k)]
    options = {"use_q_l2norm": True, "use_k_l2norm": True}
    found, _ = chunk_gated_oja_rule(q, k, v, g, ones, **options)
    assert_close([found], [chunk_gated_oja_rule(*normed, v, g, ones)[0]])
