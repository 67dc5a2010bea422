"""What serves fla's delta rule operators equals fla's references: values and all gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fla.modules.token_shift import token_shift_ref
from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gdn2.naive import naive_recurrent_gdn2
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.generalized_delta_rule.iplr.naive import iplr_recurrence
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import k_update_ref
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.token_shift import token_shift
from flame_accel.kernels.recurrence import delta_rule, dplr, kda, rwkv7

TOLERANCE = 1e-4
B, T, H, K, V = 2, 45, 2, 16, 24
FINAL = {"output_final_state": True}


def run(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """All outputs and all gradients of a random projection of them."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(0)
    projected = sum((o * torch.randn(o.shape)).sum() for o in outputs)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(projected, leaves)]


def assert_same(
    ours: Callable[..., Any], theirs: Callable[..., Any], tensors: list[Tensor]
) -> None:
    pairs = zip(run(ours, tensors), run(theirs, tensors), strict=True)
    for index, (a, e) in enumerate(pairs):
        assert a.shape == e.shape
        assert (a - e).norm() <= TOLERANCE * e.norm(), f"tensor {index}"


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def qkv() -> list[Tensor]:
    """q, k, v, strengths, initial state."""
    torch.manual_seed(1)
    q, k, v = unit(B, T, H, K), unit(B, T, H, K), torch.randn(B, T, H, V)
    return [q, k, v, torch.rand(B, T, H), torch.randn(B, H, K, V)]


def head_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """fla's older references, which take [B, H, T, ...]."""

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        *rest, h = tensors
        o, state = function(*(x.transpose(1, 2) for x in rest), initial_state=h)
        return o.transpose(1, 2), state

    return call


def lengths_one(function: Callable[..., Any], *which: int) -> Callable[..., Any]:
    """`function` with the tensors at `which` divided by their lengths."""

    def call(*tensors: Tensor) -> Any:
        return function(
            *(
                x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() if i in which else x
                for i, x in enumerate(tensors)
            )
        )

    return call


@pytest.mark.parametrize("name", ["chunk_delta_rule", "fused_recurrent_delta_rule"])
def test_delta_rule(qkv, name):
    function = getattr(delta_rule, name)
    q, k, *rest = qkv
    assert_same(
        lambda *x: function(*x[:-1], initial_state=x[-1], use_qk_l2norm_in_kernel=True, **FINAL),
        lengths_one(head_first(delta_rule_recurrence), 0, 1),
        [3 * q, 2 * k, *rest],
    )
    ones = torch.ones(B, T, H)
    assert torch.equal(function(q, k, rest[0])[0], function(q, k, rest[0], ones)[0])
    assert function(q, k, rest[0])[1] is None


@pytest.mark.parametrize("name", ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"])
@pytest.mark.parametrize("groups", [1, 2])
def test_gated_delta_rule_with_gates_in_kernel_and_grouped_values(name, groups):
    torch.manual_seed(2)
    heads = groups * H
    tensors = [
        torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, heads, V),
        torch.randn(B, T, heads), torch.randn(B, T, heads), torch.randn(heads),
        torch.randn(heads), torch.randn(B, heads, V, K),
    ]  # fmt: skip

    def ours(q, k, v, g, beta, A_log, dt_bias, h):
        return getattr(delta_rule, name)(
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

    assert_same(ours, lengths_one(theirs, 0, 1), tensors)


@pytest.mark.parametrize("gated", [True, False])
def test_gated_delta_product(gated):
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
    assert_same(ours, call(naive_recurrent_gated_delta_product), tensors)


@pytest.mark.parametrize("recurrent", [False, True])
def test_comba(qkv, recurrent):
    q, k, v, beta, h = qkv
    p, g = 2 * unit(B, T, H, K), -torch.rand(B, T, H)

    def ours(q, k, v, p, g, beta, h):
        options = {"initial_state": h, "use_qk_l2norm_in_kernel": True, **FINAL}
        if recurrent:
            return delta_rule.fused_recurrent_comba(q, k, p, v, g, beta, **options)
        return delta_rule.chunk_comba(q, k, v, p, g, beta, **options)

    def theirs(q, k, v, p, g, beta, h):
        return naive_chunk_comba(q, k, v, p, g, beta, initial_state=h, **FINAL)

    assert_same(ours, lengths_one(theirs, 0, 1, 3), [q, k, v, p, g, beta, h])


@pytest.mark.parametrize("name", ["chunk_kda", "fused_recurrent_kda"])
@pytest.mark.parametrize("lower_bound", [None, -5.0])
def test_kda_with_gates_in_kernel_and_grouped_values(name, lower_bound):
    torch.manual_seed(4)
    heads = 2 * H
    tensors = [
        torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, heads, V),
        torch.randn(B, T, heads, K), torch.randn(B, T, heads), torch.randn(heads),
        torch.randn(heads * K), torch.randn(B, heads, V, K),
    ]  # fmt: skip

    def ours(q, k, v, g, beta, A_log, dt_bias, h):
        return getattr(kda, name)(
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

    assert_same(ours, lengths_one(theirs, 0, 1), tensors)


def test_kda_gate_without_speed_needs_a_bound():
    g, bias = torch.randn(B, T, H, K), torch.randn(H * K)
    expected = naive_kda_lowerbound_gate(g, None, bias, -2.0)
    assert torch.equal(kda.fused_kda_gate(g, None, bias, -2.0), expected)
    with pytest.raises(UserError):
        kda.fused_kda_gate(g)


@pytest.mark.parametrize("name", ["chunk_gdn2", "fused_recurrent_gdn2"])
def test_gdn2(qkv, name):
    q, k, v, _, h = qkv
    tensors = [q, k, v, -torch.rand(B, T, H, K), torch.rand(B, T, H, K), torch.rand(B, T, H, V), h]
    assert_same(
        lambda *x: getattr(kda, name)(*x[:-1], initial_state=x[-1], **FINAL),
        lambda *x: naive_recurrent_gdn2(*x[:-1], initial_state=x[-1], **FINAL),
        tensors,
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_dplr(qkv, reverse):
    q, k, v, _, h = qkv
    a = unit(B, T, H, K)
    tensors = [q, k, v, a, -a * torch.rand(B, T, H, K), -torch.rand(B, T, H, K), h]

    def ours(*x):
        return dplr.fused_recurrent_dplr_delta_rule(
            *x[:-1], initial_state=x[-1], reverse=reverse, **FINAL
        )

    def theirs(*x):
        x = [z.flip(1) for z in x[:-1]] + [x[-1]] if reverse else x
        o, state = head_first(dplr_recurrence)(*x)
        return o.flip(1) if reverse else o, state

    assert_same(ours, theirs, tensors)


def test_reversed_packed_documents_equal_separate_ones(qkv):
    q, k, v, _, h = (x[:1] for x in qkv)
    a, lengths = unit(1, T, H, K), (1, 33, 11)
    tensors = [q, k, v, a, -0.5 * a, -torch.rand(1, T, H, K)]
    h = torch.cat((h, -h, 2 * h))

    def call(tensors, h, cu_seqlens=None):
        return dplr.fused_recurrent_dplr_delta_rule(
            *tensors, initial_state=h, reverse=True, cu_seqlens=cu_seqlens, **FINAL
        )

    o, state = call(tensors, h, torch.tensor([0, *lengths]).cumsum(0))
    parts = zip(*(x.split(lengths, 1) for x in tensors), strict=True)
    outputs = [call(part, h[i : i + 1]) for i, part in enumerate(parts)]
    torch.testing.assert_close(o, torch.cat([x[0] for x in outputs], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, torch.cat([x[1] for x in outputs]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["chunk_iplr_delta_rule", "fused_recurrent_iplr_delta_rule"])
def test_iplr(qkv, name):
    q, k, v, _, h = qkv
    a = unit(B, T, H, K)
    assert_same(
        lambda *x: getattr(dplr, name)(*x[:-1], initial_state=x[-1], **FINAL),
        head_first(iplr_recurrence),
        [q, k, v, a, -a * torch.rand(B, T, H, K), h],
    )


@pytest.mark.parametrize("name", ["chunk_rwkv7", "fused_recurrent_rwkv7", "fused_mul"])
def test_rwkv7(qkv, name):
    r, k, v, _, h = qkv
    w, kk, a = -0.6065 * torch.rand(B, T, H, K), unit(B, T, H, K), torch.rand(B, T, H, K)

    def ours(r, w, k, v, kk, a, h):
        options = {"scale": K**-0.5, "initial_state": h, **FINAL}
        if name == "fused_mul":
            return rwkv7.fused_mul_recurrent_rwkv7(r, w, k, v, kk, a, **options)
        return getattr(rwkv7, name)(r, w, k, v, -kk, kk * a, **options)

    def theirs(r, w, k, v, kk, a, h):
        return head_first(dplr_recurrence)(r, k, v, -kk, kk * a, w, h)

    assert_same(ours, theirs, [r, w, k, v, kk, a, h])


def test_what_rwkv7_fuses(qkv):
    torch.manual_seed(5)
    x, delta = torch.randn(2, B, T, K).unbind()
    mixes = [torch.randn(1, 1, K) for _ in range(6)]
    assert_same(rwkv7.fused_addcmul_rwkv7, torch_addcmul_rwkv7, [x, delta, *mixes])
    assert rwkv7.fused_addcmul_rwkv7(x, delta, *mixes[:5])[-1] is None
    assert_same(rwkv7.fused_k_rwkv7, k_update_ref, [x, delta, torch.randn(K)])
    r, k, v, *_ = qkv
    o, g = torch.randn(2, B, T, H * V).unbind()
    tensors = [o, r, k, torch.randn(H, K), v, g]
    assert_same(rwkv7.gate_output_correction, gate_output_correction_ref, tensors)


@pytest.mark.parametrize("lengths", [None, (1, 33, 11)])
def test_token_shift(lengths):
    x = torch.randn(2 if lengths is None else 1, T, K)
    cu_seqlens = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    assert_same(lambda x: token_shift(x, cu_seqlens), lambda x: token_shift_ref(x, cu_seqlens), [x])
    whole, last = token_shift(x, cu_seqlens, output_cache=True)
    tails = x[:, -1] if lengths is None else torch.stack([s[0, -1] for s in x.split(lengths, 1)])
    assert torch.equal(last, tails)
    cached = token_shift(x, cu_seqlens, cache=last)
    added = torch.zeros_like(x)
    if lengths is None:
        added[:, 0] = last
    else:
        added[0, cu_seqlens[:-1]] = last
    torch.testing.assert_close(cached, whole + added)


def test_tokens_after_a_shift_follow_the_cache():
    x = torch.randn(B, T, K)
    whole, final = token_shift(x, output_cache=True)
    first, cache = token_shift(x[:, :20], output_cache=True)
    second, last = token_shift(x[:, 20:], cache=cache, output_cache=True)
    assert torch.equal(torch.cat((first, second), 1), whole)
    assert torch.equal(last, final)
