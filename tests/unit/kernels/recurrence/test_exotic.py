"""MesaNet, momentum, preconditioned and cyclic operators equal token by token references.

Outputs, final states and all gradients; packed documents; one token at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from fla.ops.cyfa.naive import naive_recurrent_cyfa
from fla.ops.momentum_delta_rule.naive import recurrent_momentum_delta_rule_ref
from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
from fla.ops.precond_kda.naive import naive_recurrent_precond_kda
from torch import Tensor

from flame_accel.kernels.recurrence import cyfa, mesa, momentum, preconditioned

TOLERANCE = 1e-4
TOKENS = [1, 5, 64, 65, 150]
LENGTHS = (1, 40, 93, 1, 66, 5)
EDGES = torch.tensor([0, *LENGTHS]).cumsum(0)
H, K, V, PERIOD = 2, 8, 6, 5

Tensors = list[Tensor]
Result = tuple[Tensor, Tensors]


class Operator(NamedTuple):
    """An operator and its reference, both from the inputs of tokens, parameters and states."""

    tokens: Callable[[int, int], Tensors]
    """Inputs [n, t, ...] for n sequences of t tokens."""
    parameters: Callable[[], Tensors]
    states: Callable[[int], Tensors]
    """Initial states [n, ...]."""
    ours: Callable[..., Result]
    """(inputs, parameters, states, cu_seqlens) -> outputs, final states."""
    reference: Callable[..., Result]
    """(inputs, parameters, states) -> outputs, final states."""


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def log_decay(*shape: int) -> Tensor:
    """Mostly gentle, some steep."""
    return -6 * torch.rand(*shape) ** 4


def mesa_tokens(n: int, t: int) -> Tensors:
    s = (n, t, H)
    return [unit(*s, K), unit(*s, K), torch.randn(*s, V), log_decay(*s), torch.rand(*s)]


def mesa_states(n: int) -> Tensors:
    root = torch.randn(n, H, K, K)
    return [root @ root.mT / K, torch.randn(n, H, K, V)]


def symmetric(x: Tensor) -> Tensor:
    # a symmetric matrix has a gradient up to an antisymmetric one
    return (x + x.mT) / 2


def mesa_ours(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, *states = mesa.chunk_mesa_net(*x, *p, symmetric(h[0]), h[1], True, cu_seqlens=cu_seqlens)
    return o, states


def mesa_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    (q, k, v, g, beta), (h_kk, h_kv), outputs = x, (symmetric(h[0]), h[1]), []
    for t in range(q.shape[1]):
        decay, key = g[:, t, :, None, None].exp(), (k * beta.unsqueeze(-1))[:, t].unsqueeze(-1)
        h_kk = h_kk * decay + key * k[:, t].unsqueeze(-2)
        h_kv = h_kv * decay + key * v[:, t].unsqueeze(-2)
        fit = torch.linalg.solve(h_kk + torch.diag_embed(p[0]), q[:, t].unsqueeze(-1))
        outputs.append((fit * h_kv).sum(-2))
    return torch.stack(outputs, 1), [h_kk, h_kv]


def momentum_tokens(n: int, t: int) -> Tensors:
    s = (n, t, H)
    vectors = [unit(*s, K), unit(*s, K), torch.randn(*s, V)]
    return [*vectors, log_decay(*s), log_decay(*s), unit(*s, K), torch.rand(*s), torch.rand(*s)]


def momentum_ours(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, states = momentum.chunk_momentum_delta_rule(
        *x,
        initial_state=torch.stack(h),
        output_final_state=True,
        cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=False,
        use_p_times_alpha=False,
    )
    return o, list(states)


def momentum_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    o, states = recurrent_momentum_delta_rule_ref(
        *x, initial_S=h[0], initial_M=h[1], output_final_state=True
    )
    return o, list(states)


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


def cyfa_tokens(n: int, t: int) -> Tensors:
    s = (n, t, H)
    vectors = [torch.randn(*s, K), torch.randn(*s, K), torch.randn(*s, V)]
    return [*vectors, log_decay(*s), torch.rand(*s), torch.rand(*s)]


def cyfa_parameters() -> Tensors:
    return [torch.randn(H, PERIOD, PERIOD), torch.rand(K) + 0.5, torch.rand(K) + 0.5]


def cyfa_states(n: int) -> Tensors:
    slots = PERIOD + 1
    return [torch.randn(n, H, K, slots), torch.randn(n, H, slots, V), 9 * torch.rand(n, H)]


def cyfa_ours(x: Tensors, p: Tensors, h: Tensors, cu_seqlens: Tensor | None = None) -> Result:
    o, states = cyfa.chunk_cyfa(*x, *p, 1e-5, 1e-5, None, tuple(h), True, cu_seqlens)
    return o, list(states)


def cyfa_reference(x: Tensors, p: Tensors, h: Tensors) -> Result:
    o, states = naive_recurrent_cyfa(*x, *p, 1e-5, 1e-5, None, tuple(h), True)
    return o, list(states)


OPERATORS = {
    "mesa": Operator(
        mesa_tokens, lambda: [0.5 + torch.rand(H, K)], mesa_states, mesa_ours, mesa_reference
    ),
    "momentum": Operator(
        momentum_tokens,
        lambda: [],
        lambda n: [torch.randn(n, H, K, V), torch.randn(n, H, K, V)],
        momentum_ours,
        momentum_reference,
    ),
    "precond-gated-delta": Operator(
        gated_tokens,
        lambda: [torch.randn(H)],
        lambda n: [torch.randn(n, 2 * H, K, V), torch.rand(n, H, K)],
        gated_ours,
        gated_reference,
    ),
    "precond-kda": Operator(
        kda_tokens,
        lambda: [torch.randn(H)],
        lambda n: [torch.randn(n, H, K, V), torch.rand(n, H, K)],
        kda_ours,
        kda_reference,
    ),
    "cyfa": Operator(cyfa_tokens, cyfa_parameters, cyfa_states, cyfa_ours, cyfa_reference),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


def run(function: Callable[..., Result], groups: list[Tensors]) -> Tensors:
    """Outputs, final states, and the gradients of a random projection of all of them."""
    leaves = [[x.detach().clone().requires_grad_() for x in group] for group in groups]
    o, states = function(*leaves)
    torch.manual_seed(0)
    projected = sum((y * torch.randn(y.shape)).sum() for y in (o, *states))
    flat = [x for group in leaves for x in group]
    return [o.detach(), *(y.detach() for y in states), *torch.autograd.grad(projected, flat)]


def assert_same(actual: Tensors, expected: Tensors, tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * e.norm(), f"tensor {index}"


@every_operator
@pytest.mark.parametrize("tokens", TOKENS)
def test_operator_equals_recurrence(name: str, tokens: int):
    torch.manual_seed(tokens)
    operator = OPERATORS[name]
    groups = [operator.tokens(2, tokens), operator.parameters(), operator.states(2)]
    assert_same(run(operator.ours, groups), run(operator.reference, groups))


@every_operator
def test_packed_documents_equal_separate_ones(name: str):
    torch.manual_seed(0)
    operator = OPERATORS[name]

    def packed(x: Tensors, p: Tensors, h: Tensors) -> Result:
        return operator.ours(x, p, h, EDGES)

    def separate(x: Tensors, p: Tensors, h: Tensors) -> Result:
        documents = zip(*(y.split(LENGTHS, 1) for y in x), strict=True)
        befores = zip(*(y.split(1) for y in h), strict=True)
        results = [operator.ours(d, p, b) for d, b in zip(documents, befores, strict=True)]
        finals = zip(*(states for _, states in results), strict=True)
        return torch.cat([o for o, _ in results], 1), [torch.cat(y) for y in finals]

    groups = [
        operator.tokens(1, sum(LENGTHS)), operator.parameters(), operator.states(len(LENGTHS)),
    ]  # fmt: skip
    assert_same(run(packed, groups), run(separate, groups), 1e-5)


@every_operator
def test_a_document_does_not_depend_on_its_neighbours_bits(name: str):
    torch.manual_seed(0)
    operator = OPERATORS[name]
    x, p = operator.tokens(1, sum(LENGTHS)), operator.parameters()
    h = operator.states(len(LENGTHS))
    o, _ = operator.ours(x, p, h, EDGES)
    first, last = 41, 134
    other = operator.tokens(1, sum(LENGTHS))
    mixed = [
        torch.cat((b[:, :first], a[:, first:last], b[:, last:]), 1)
        for a, b in zip(x, other, strict=True)
    ]
    changed, _ = operator.ours(mixed, p, h, EDGES)
    assert not torch.equal(changed[:, :first], o[:, :first])
    assert torch.equal(changed[:, first:last], o[:, first:last])


@every_operator
def test_whole_equals_one_token_at_a_time(name: str):
    torch.manual_seed(0)
    operator = OPERATORS[name]
    x, p, h = operator.tokens(2, 70), operator.parameters(), operator.states(2)
    expected, finals = operator.ours(x, p, h)
    outputs = []
    for t in range(70):
        o, h = operator.ours([y[:, t : t + 1] for y in x], p, h)
        outputs.append(o)
    assert_same([torch.cat(outputs, 1), *h], [expected, *finals])


def test_mesa_step_equals_reference():
    torch.manual_seed(0)
    x, lamb, h = mesa_tokens(3, 1), 0.5 + torch.rand(H, K), mesa_states(3)
    o, states = mesa_reference(x, [lamb], h)
    q, k, v, g, beta = (y[:, 0] for y in x)
    actual = mesa.mesa_net_decoding_one_step(q, k, v, g, lamb, beta, *h)
    assert_same(list(actual), [o[:, 0], *states])


def test_mesa_gradients_do_not_depend_on_their_scale():
    torch.manual_seed(0)
    x, lamb = mesa_tokens(2, 70), torch.rand(H, K) + 0.5
    x = [y.requires_grad_() for y in x]
    o, _, _ = mesa.chunk_mesa_net(*x, lamb)
    weights = torch.randn(o.shape)
    expected = torch.autograd.grad(o, x, weights, retain_graph=True)
    actual = torch.autograd.grad(o, x, weights * 1e-12)
    assert_same([1e12 * y for y in actual], list(expected))


def test_raw_gates_become_decays():
    torch.manual_seed(0)
    (q, k, v, raw, *rest), a_log = kda_tokens(2, 40), torch.rand(H)
    decays = -a_log.exp().unsqueeze(-1) * F.softplus(raw)
    expected, _, _ = preconditioned.chunk_precond_kda(q, k, v, decays, *rest)
    options = {"use_gate_in_kernel": True, "A_log": a_log}
    for function in (preconditioned.chunk_precond_kda, preconditioned.fused_recurrent_precond_kda):
        assert_same([function(q, k, v, raw, *rest, **options)[0]], [expected])


@every_operator
def test_outputs_and_states_keep_dtypes_under_autocast(name: str):
    torch.manual_seed(0)
    operator = OPERATORS[name]
    (q, k, v, *rest), p, h = operator.tokens(1, 70), operator.parameters(), operator.states(1)
    rounded = [x.bfloat16() for x in (q, k, v)]
    expected, finals = operator.ours([*(x.float() for x in rounded), *rest], p, h)
    with torch.autocast("cpu", torch.bfloat16):
        o, states = operator.ours([*rounded, *rest], p, h)
    assert o.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in states)
    assert_same([o.float(), *states], [expected, *finals], 1e-2)
