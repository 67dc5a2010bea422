"""The delta rule with decays per channel equals fla's references: values and all gradients."""

import pytest
import torch
from fla.ops.gdn2 import chunk_gdn2
from fla.ops.gdn2.naive import naive_recurrent_gdn2
from fla.ops.kda import chunk_kda
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence import kda
from tests.helpers.gradients import assert_close, assert_same_results
from tests.helpers.recurrence import (
    B,
    H,
    K,
    T,
    V,
    unit,
    with_normalized,
)

FINAL = {"output_final_state": True}


@pytest.mark.parametrize("lower_bound", [None, -5.0])
def test_kda_equals_recurrence_with_gates_in_kernel_and_grouped_values(lower_bound):
    torch.manual_seed(4)
    heads = 2 * H
    tensors = [
        torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, heads, V),
        torch.randn(B, T, heads, K), torch.randn(B, T, heads), torch.randn(heads),
        torch.randn(heads * K), torch.randn(B, heads, V, K),
    ]  # fmt: skip

    def ours(q, k, v, g, beta, A_log, dt_bias, h):
        return kda.chunk_kda(
            q, k, v, g, beta, A_log=A_log, dt_bias=dt_bias, initial_state=h,
            use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True,
            lower_bound=lower_bound, state_v_first=True, **FINAL,
        )  # fmt: skip

    def theirs(q, k, v, g, beta, A_log, dt_bias, h):
        if lower_bound is None:
            g = naive_kda_gate(g, A_log, dt_bias)
        else:
            g = naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound)
        o, state = naive_recurrent_kda(q, k, v, g, beta.sigmoid(), initial_state=h.mT, **FINAL)
        return o, state.mT

    assert_same_results(ours, with_normalized(theirs, 0, 1), tensors, tolerance=1e-4)


def test_kda_gate_without_rate_needs_a_bound():
    g, bias = torch.randn(B, T, H, K), torch.randn(H * K)
    expected = naive_kda_lowerbound_gate(g, None, bias, -2.0)
    assert torch.equal(kda.fused_kda_gate(g, None, bias, -2.0), expected)
    with pytest.raises(UserError):
        kda.fused_kda_gate(g)


def test_gdn2_equals_recurrence(qkv):
    q, k, v, _, h = qkv
    tensors = [q, k, v, -torch.rand(B, T, H, K), torch.rand(B, T, H, K), torch.rand(B, T, H, V), h]
    assert_same_results(
        lambda *x: kda.chunk_gdn2(*x[:-1], initial_state=x[-1], **FINAL),
        lambda *x: naive_recurrent_gdn2(*x[:-1], initial_state=x[-1], **FINAL),
        tensors,
        tolerance=1e-4,
    )


@pytest.mark.parametrize("name", ["kda", "gdn2"])
@pytest.mark.parametrize("state_v_first", [False, True])
def test_states_between_chunks_continue_the_sequence(name, state_v_first):
    torch.manual_seed(0)
    tokens, edges = 150, torch.tensor([0, 10, 10, 150])
    q, k, v = unit(1, tokens, H, K), unit(1, tokens, H, K), torch.randn(1, tokens, H, V)
    g, b = -torch.rand(1, tokens, H, K), torch.rand(1, tokens, H, K)
    rest = (b[..., 0],) if name == "kda" else (b, torch.rand(1, tokens, H, V))
    function = chunk_kda if name == "kda" else chunk_gdn2
    inputs, options = (q, k, v, g, *rest), {"state_v_first": state_v_first, **FINAL}
    expected, final = function(*inputs, cu_seqlens=edges, **options)
    o, last, states = function(
        *inputs, cu_seqlens=edges, return_intermediate_states=True, **options
    )
    shape = (V, K) if state_v_first else (K, V)
    assert states.shape == (1, 1 + 3, H, *shape)
    assert_close([o, last], [expected, final], 1e-5, 1e-12)
    # the last of the states is that before token 128 of the last document
    end, _ = function(*(x[:, 138:] for x in inputs), initial_state=states[:, -1], **options)
    assert_close([end], [expected[:, 138:]], 1e-5)


def test_states_between_chunks_of_rows(qkv):
    q, k, v, beta, _ = qkv
    g = -torch.rand(B, T, H, K)
    _, final, states = chunk_kda(q, k, v, g, beta, return_intermediate_states=True)
    assert final is None and states.shape == (B, 1, H, K, V) and not states.any()
