"""The delta rule with momentum equals fla's reference: outputs, states, gradients; its layer."""

import pytest
import torch
from fla.layers.momentum_deltanet import MomentumDeltaNet
from fla.ops.momentum_delta_rule.naive import recurrent_momentum_delta_rule_ref
from torch import Tensor, nn

from flame_accel.kernels.recurrence import momentum
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
from tests.helpers.recurrence import (
    assert_cached_tokens_equal_one_pass,
    assert_every_parameter_gets_a_gradient,
    unit,
)


def draw_inputs(n: int, t: int) -> Tensors:
    s = (n, t, H)
    vectors = [unit(*s, K), unit(*s, K), torch.randn(*s, V)]
    return [*vectors, log_decay(*s), log_decay(*s), unit(*s, K), torch.rand(*s), torch.rand(*s)]


def run_operator(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, states = momentum.chunk_momentum_delta_rule(
        *x,
        initial_state=torch.stack(h),
        output_final_state=True,
        cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=False,
        use_p_times_alpha=False,
    )
    return o, list(states)


def run_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    o, states = recurrent_momentum_delta_rule_ref(
        *x, initial_S=h[0], initial_M=h[1], output_final_state=True
    )
    return o, list(states)


class TestMomentumDeltaRule(OperatorLaws):
    operator = Operator(
        draw_inputs,
        lambda: [],
        lambda n: [torch.randn(n, H, K, V), torch.randn(n, H, K, V)],
        run_operator,
        run_reference,
    )


def build_layer() -> nn.Module:
    torch.manual_seed(0)
    return MomentumDeltaNet(hidden_size=32, head_dim=16, num_heads=2, layer_idx=0)


@pytest.mark.usefixtures("torch_kernels")
def test_cached_tokens_of_the_layer_equal_one_pass():
    assert_cached_tokens_equal_one_pass(build_layer().eval(), tokens=80, first=60)


@pytest.mark.usefixtures("torch_kernels")
def test_every_parameter_of_the_layer_gets_a_gradient():
    assert_every_parameter_gets_a_gradient(build_layer().train())
