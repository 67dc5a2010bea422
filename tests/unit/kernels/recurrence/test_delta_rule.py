"""The delta rule with decays per head equals fla's references: values and all gradients."""

import pytest
import torch
from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.kda.naive import naive_recurrent_kda

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence import delta_rule
from tests.helpers.gradients import assert_same_results
from tests.helpers.recurrence import (
    B,
    H,
    K,
    T,
    V,
    head_first,
    unit,
    with_normalized,
)

FINAL = {"output_final_state": True}


def test_delta_rule_equals_recurrence(qkv):
    function = delta_rule.chunk_delta_rule
    q, k, *rest = qkv
    assert_same_results(
        lambda *x: function(*x[:-1], initial_state=x[-1], use_qk_l2norm_in_kernel=True, **FINAL),
        with_normalized(head_first(delta_rule_recurrence), 0, 1),
        [3 * q, 2 * k, *rest],
        tolerance=1e-4,
    )
    ones = torch.ones(B, T, H)
    assert torch.equal(function(q, k, rest[0])[0], function(q, k, rest[0], ones)[0])
    assert function(q, k, rest[0])[1] is None


@pytest.mark.parametrize("groups", [1, 2])
def test_gated_delta_rule_equals_recurrence_with_gates_in_kernel_and_grouped_values(groups):
    torch.manual_seed(2)
    heads = groups * H
    tensors = [
        torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, heads, V),
        torch.randn(B, T, heads), torch.randn(B, T, heads), torch.randn(heads),
        torch.randn(heads), torch.randn(B, heads, V, K),
    ]  # fmt: skip

    def ours(q, k, v, g, beta, A_log, dt_bias, h):
        return delta_rule.chunk_gated_delta_rule(
            q, k, v, g=g, beta=beta, initial_state=h, use_qk_l2norm_in_kernel=True,
            use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, use_gate_in_kernel=True,
            A_log=A_log, dt_bias=dt_bias, state_v_first=True, **FINAL,
        )  # fmt: skip

    def theirs(q, k, v, g, beta, A_log, dt_bias, h):
        q, k = (x.repeat_interleave(groups, 2) for x in (q, k))
        o, state = naive_recurrent_gated_delta_rule(
            q, k, v, 2 * beta.sigmoid(), naive_gdn_gate(g, A_log, dt_bias),
            initial_state=h.mT, **FINAL,
        )  # fmt: skip
        return o, state.mT

    assert_same_results(ours, with_normalized(theirs, 0, 1), tensors, tolerance=1e-4)


@pytest.mark.parametrize("gated", [True, False])
def test_gated_delta_product_equals_recurrence(gated):
    torch.manual_seed(3)
    lengths, steps = torch.tensor([0, 1, 40, 45]), 3
    tensors = [
        unit(1, T, H, K), unit(1, T * steps, H, K), torch.randn(1, T * steps, H, V),
        torch.rand(1, T * steps, H), -torch.rand(1, T, H), torch.randn(3, H, K, V),
    ]  # fmt: skip
    if not gated:
        del tensors[4]

    def call(function):
        def run(q, k, v, beta, *rest):
            g = rest[0] if gated else None
            return function(
                q, k, v, g, beta, scale=0.3, num_householder=steps, initial_state=rest[-1],
                cu_seqlens=lengths, **FINAL,
            )  # fmt: skip

        return run

    ours = call(delta_rule.chunk_gated_delta_product)
    assert_same_results(ours, call(naive_recurrent_gated_delta_product), tensors, tolerance=1e-4)


def test_comba_equals_reference(qkv):
    q, k, v, beta, h = qkv
    p, g = 2 * unit(B, T, H, K), -torch.rand(B, T, H)

    def ours(q, k, v, p, g, beta, h):
        options = {"initial_state": h, "use_qk_l2norm_in_kernel": True, **FINAL}
        return delta_rule.chunk_comba(q, k, v, p, g, beta, **options)

    def theirs(q, k, v, p, g, beta, h):
        return naive_chunk_comba(q, k, v, p, g, beta, initial_state=h, **FINAL)

    assert_same_results(
        ours, with_normalized(theirs, 0, 1, 3), [q, k, v, p, g, beta, h], tolerance=1e-4
    )


def test_gate_equals_reference():
    tensors = [torch.randn(B, T, H), torch.randn(H), torch.randn(H)]
    assert_same_results(delta_rule.fused_gdn_gate, naive_gdn_gate, tensors)
    assert_same_results(delta_rule.fused_gdn_gate, naive_gdn_gate, tensors[:2])


def test_decays_of_heads_and_channels_add_up(qkv):
    q, k, v, beta, h = qkv
    g, gk = -torch.rand(B, T, H), -torch.rand(B, T, H, K)

    def ours(q, k, v, beta, g, gk, h):
        options = {"initial_state": h, **FINAL}
        return delta_rule.chunk_gated_delta_rule(q, k, v, g, beta, gk=gk, **options)

    def theirs(q, k, v, beta, g, gk, h):
        decays = g.unsqueeze(-1) + gk
        return naive_recurrent_kda(q, k, v, decays, beta, initial_state=h, **FINAL)

    assert_same_results(ours, theirs, [q, k, v, beta, g, gk, h], tolerance=1e-4)


def test_what_has_no_implementation_is_refused(qkv):
    q, k, v, beta, _ = qkv
    with pytest.raises(UserError, match="gv"):
        fused_recurrent_gated_delta_rule(q, k, v, gv=-torch.rand(B, T, H, V))
    with pytest.raises(UserError, match="cp_context"):
        chunk_gated_delta_rule(q, k, v, None, beta, cp_context=object())
    with pytest.raises(UserError, match="per value channel"):
        delta_rule.chunk_delta_rule(q, k, v, torch.rand(B, T, H, V))
