"""Preconditioned delta rules equal fla's references: outputs, states, all gradients."""

import pytest
import torch
import torch.nn.functional as F
from fla.ops.precond_gated_delta_rule import fused_recurrent_precond_gated_delta_rule
from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
from fla.ops.precond_kda import chunk_precond_kda
from fla.ops.precond_kda.naive import naive_recurrent_precond_kda
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence import preconditioned
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


def gated_tokens(n: int, t: int) -> Tensors:
    s, shared = (n, t, H), (n, t, 2 * H)
    vectors = [unit(*s, K), unit(*s, K), torch.randn(*shared, V)]
    return [*vectors, log_decay(*s), log_decay(*shared), torch.rand(*s), torch.rand(*shared)]


def gated_ours(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, *states = preconditioned.chunk_precond_gated_delta_rule(
        *x, None, *h, True, True, cu_seqlens, log_atk_scale=p[0]
    )
    return o, states


def gated_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    o, *states = naive_recurrent_precond_gated_delta_rule(*x, None, *h, True, log_atk_scale=p[0])
    return o, states


def kda_tokens(n: int, t: int) -> Tensors:
    s = (n, t, H)
    vectors = [unit(*s, K), unit(*s, K), torch.randn(*s, V), log_decay(*s, K)]
    return [*vectors, log_decay(*s), torch.rand(*s), torch.rand(*s)]


def kda_ours(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, *states = preconditioned.chunk_precond_kda(
        *x, None, *h, True, cu_seqlens=cu_seqlens, log_atk_scale=p[0]
    )
    return o, states


def kda_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    x = [F.normalize(x[0], dim=-1), F.normalize(x[1], dim=-1), *x[2:]]
    o, *states = naive_recurrent_precond_kda(*x, None, *h, True, log_atk_scale=p[0])
    return o, states


class TestPreconditionedGatedDeltaRule(OperatorLaws):
    operator = Operator(
        gated_tokens,
        lambda: [torch.randn(H)],
        lambda n: [torch.randn(n, 2 * H, K, V), torch.rand(n, H, K)],
        gated_ours,
        gated_reference,
    )


class TestPreconditionedKda(OperatorLaws):
    operator = Operator(
        kda_tokens,
        lambda: [torch.randn(H)],
        lambda n: [torch.randn(n, H, K, V), torch.rand(n, H, K)],
        kda_ours,
        kda_reference,
    )


def test_raw_gates_become_decays():
    torch.manual_seed(0)
    (q, k, v, raw, *rest), a_log = kda_tokens(2, 40), torch.rand(H)
    decays = -a_log.exp().unsqueeze(-1) * F.softplus(raw)
    expected, _, _ = preconditioned.chunk_precond_kda(q, k, v, decays, *rest)
    options = {"use_gate_in_kernel": True, "A_log": a_log}
    assert_close([preconditioned.chunk_precond_kda(q, k, v, raw, *rest, **options)[0]], [expected])


def test_decay_of_the_values_is_refused():
    q, k, v, g_atk, g, beta_atk, beta = gated_tokens(1, 5)
    with pytest.raises(UserError, match="gv"):
        fused_recurrent_precond_gated_delta_rule(
            q, k, v, g=g, gv=v, beta=beta, g_atk=g_atk, beta_atk=beta_atk
        )


def test_keys_are_always_normalised_in_chunks_as_in_fla():
    x = kda_tokens(1, 5)
    o = chunk_precond_kda(*x)[0]
    assert torch.equal(chunk_precond_kda(*x, use_qk_l2norm_in_kernel=False)[0], o)
