"""The long tail of the decay family equals token by token references: values and all gradients.

HGRN, GSA, ABC, LightNet, RWKV6, Based, ReBased, decays of the values, and the three Mambas.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fla.layers import ABCAttention, Mamba, Mamba2
from fla.layers.mamba3 import Mamba3
from fla.models.utils import Cache
from fla.ops.abc.naive import naive_recurrent_abc
from fla.ops.based.naive import naive_parallel_based
from fla.ops.gsa.naive import naive_recurrent_gsa
from fla.ops.hgrn.naive import naive_recurrent_hgrn
from fla.ops.rebased.naive import naive_parallel_rebased
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from torch import Tensor, nn

from flame_accel.kernels import install, uninstall
from flame_accel.kernels.recurrence import based, gla, gsa, hgrn, mamba, mamba2, mamba3, rwkv6

TOLERANCE = 1e-4
TOKENS = [1, 5, 16, 64, 65, 150]
LENGTHS = (1, 40, 93, 1, 66, 5)
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0)


@pytest.fixture(autouse=True, scope="module")
def kernels():
    install("torch")
    yield
    install()


def run(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """Outputs and all gradients of a random projection of them."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    outputs = [x for x in flat(function(*leaves)) if x is not None]
    torch.manual_seed(0)
    projected = torch.stack([(x * torch.randn(x.shape)).sum() for x in outputs]).sum()
    return [x.detach() for x in outputs] + list(torch.autograd.grad(projected, leaves))


def flat(value: Any) -> list[Any]:
    return [y for x in value for y in flat(x)] if isinstance(value, (tuple, list)) else [value]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert a.isfinite().all()
        assert (a - e).norm() <= tolerance * e.norm() + 1e-12, f"tensor {index}"


def one_by_one(function: Callable[..., Any], tokens: int) -> Callable[..., Any]:
    """Feeds (*sequences, states) token by token, the states of one call to the next."""

    def stepped(*tensors: Any) -> Any:
        *rest, state = tensors
        outputs = []
        for t in range(tokens):
            o, state = function(*(x[:, t : t + 1] for x in rest), state)
            outputs.append(o)
        return torch.cat(outputs, 1), state

    return stepped


def backwards(function: Callable[..., Any], num_sequences: int) -> Callable[..., Any]:
    """Feeds the first arguments from the last token to the first, and asks for just that."""

    def reversed_twice(*tensors: Any) -> Any:
        sequences = (x.flip(1) for x in tensors[:num_sequences])
        o, state = function(*sequences, *tensors[num_sequences:], reverse=True)
        return o.flip(1), state

    return reversed_twice


def separately(function: Callable[..., Any]) -> Callable[..., Any]:
    """Feeds the documents of a packed row one by one, the last argument a list of states."""

    def run_parts(*tensors: Any) -> Any:
        *rest, states = tensors
        states = zip(*(s.split(1) for s in flat(states)), strict=True)
        parts = zip(zip(*(x.split(LENGTHS, 1) for x in rest), strict=True), states, strict=True)
        results = [flat(function(*part, list(state))) for part, state in parts]
        first, *finals = zip(*results, strict=True)
        return torch.cat(first, 1), *(torch.cat(final) for final in finals)

    return run_parts


DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda r: -0.1 * r,
    "none": lambda r: 0.0 * r,
    "spread": lambda r: -20.0 * r.square(),
    "resets": lambda r: torch.where(r > 0.9, -200.0, -0.01 * r),
}


def attention_inputs(tokens: int, decay: str, batch: int = 2) -> list[Tensor]:
    """q, k [.., 12], v [.., 20], slots [.., 8] with decays, states of keys and values."""
    torch.manual_seed(tokens)
    q, k = torch.randn(2, batch, tokens, 3, 12).unbind()
    v, s = torch.randn(batch, tokens, 3, 20), torch.rand(batch, tokens, 3, 8)
    g = DECAYS[decay](torch.rand(batch, tokens, 3, 8))
    number = len(LENGTHS) if batch == 1 else batch
    return [q, k, v, s, g, torch.randn(number, 3, 12, 8), torch.randn(number, 3, 8, 20)]


def value_decay_recurrence(q, k, v, g, h):
    outputs = []
    for t in range(q.shape[1]):
        h = h * g[:, t].exp().unsqueeze(-2) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-2) * q.shape[-1] ** -0.5 @ h).squeeze(-2))
    return torch.stack(outputs, 1), h


def value_decay(q, k, v, g, h, **options):
    return gla.fused_recurrent_gla(
        q, k, v, gv=g, initial_state=h, output_final_state=True, **options
    )


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_decay_of_the_values_equals_recurrence(tokens, decay):
    q, k, _, v, g, h, _ = attention_inputs(tokens, decay)
    expected = run(value_decay_recurrence, [q, k, v, g, h])
    assert_same(run(value_decay, [q, k, v, g, h]), expected)
    assert_same(run(backwards(value_decay, 4), [q, k, v, g, h]), expected)


def gsa_with_states(function):
    def call(q, k, v, s, g, hk, hv, **options):
        return function(q, k, v, s, g, initial_state=(hk, hv), output_final_state=True, **options)

    return call


@pytest.mark.parametrize("decay", ["mild", "resets"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_gsa_equals_recurrence(tokens, decay):
    tensors = attention_inputs(tokens, decay)
    expected = run(gsa_with_states(naive_recurrent_gsa), tensors)
    for function in (gsa.chunk_gsa, gsa.fused_recurrent_gsa):
        assert_same(run(gsa_with_states(function), tensors), expected)


def test_gsa_with_shared_keys_and_without_gates_equals_recurrence():
    q, k, v, s, g, hk, hv = attention_inputs(70, "mild")
    q = torch.randn(2, 70, 6, 12)
    tensors = [q, k, v, s, g, hk, hv]
    naive = run(gsa_with_states(naive_recurrent_gsa), tensors)
    assert_same(run(gsa_with_states(gsa.chunk_gsa), tensors), naive)
    assert_same(
        run(lambda *x: gsa.chunk_gsa(*x)[0], [q, k, v, s]),
        run(lambda *x: naive_recurrent_gsa(*x)[0], [q, k, v, s]),
    )


def test_packed_gsa_equals_separate_documents():
    tensors = attention_inputs(sum(LENGTHS), "resets", batch=1)
    actual = run(lambda *x: gsa_with_states(gsa.chunk_gsa)(*x, cu_seqlens=BOUNDS), tensors)
    expected = run(
        lambda *x: separately(lambda *y: gsa_with_states(gsa.chunk_gsa)(*y[:5], *y[5]))(
            *x[:5], list(x[5:])
        ),
        tensors,
    )
    assert_same(actual, expected, 1e-6)


def test_gsa_chunks_equal_one_token_at_a_time():
    tensors = attention_inputs(40, "mild")
    whole = gsa_with_states(gsa.chunk_gsa)(*tensors)
    step = one_by_one(lambda *x: gsa_with_states(gsa.fused_recurrent_gsa)(*x[:5], *x[5]), 40)
    assert_same(flat(step(*tensors[:5], tensors[5:])), flat(whole), 1e-5)


@pytest.mark.parametrize("tokens", [2, 64, 150])
def test_abc_equals_recurrence(tokens):
    q, k, v, s, *_ = attention_inputs(tokens, "mild")
    s = 30 * s

    def naive(*x):
        o, final = naive_recurrent_abc(*(y.transpose(1, 2) for y in x), output_final_state=True)
        return o.transpose(1, 2), final

    def ours(*x):
        o, final = gsa.chunk_abc(*x, output_final_state=True)
        return o, final[:2]

    assert_same(run(ours, [q, k, v, s]), run(naive, [q, k, v, s]))


def test_abc_chunks_equal_one_token_at_a_time():
    q, k, v, s, *_ = attention_inputs(40, "mild")
    whole = gsa.chunk_abc(q, k, v, 10 * s, None, True)
    step = one_by_one(lambda *x: gsa.chunk_abc(*x, output_final_state=True), 40)
    assert_same(flat(step(q, k, v, 10 * s, None)), flat(whole), 1e-5)


def gate_recurrence(x, z):
    keys, gates = [], []
    for t in range(x.shape[1]):
        now = torch.logaddexp(z, x[:, t : t + 1])
        keys.append((x[:, t : t + 1] - now).exp())
        gates.append(z - now)
        z = now
    return torch.cat(keys, 1), torch.cat(gates, 1), z


@pytest.mark.parametrize("tokens", [1, 7, 100])
def test_additive_gate_equals_recurrence(tokens):
    torch.manual_seed(tokens)
    x, z = 20 * torch.randn(2, tokens, 3, 8), torch.randn(2, 1, 3, 8)
    assert_same(run(gsa.fused_additive_gate, [x, z]), run(gate_recurrence, [x, z]))


def test_additive_gate_of_packed_documents_without_a_past():
    x = torch.randn(1, sum(LENGTHS), 3, 8)
    k, g, z = run(lambda x: gsa.fused_additive_gate(x, None, BOUNDS), [x])[:3]
    assert (g[:, BOUNDS[:-1]] == 0).all() and (k[:, BOUNDS[:-1]] == 1).all()
    parts = [gsa.fused_additive_gate(part) for part in x.split(LENGTHS, 1)]
    assert torch.equal(k, torch.cat([p[0] for p in parts], 1))
    assert torch.equal(g, torch.cat([p[1] for p in parts], 1))
    assert torch.equal(z, torch.cat([p[2] for p in parts]))
    empty = gsa.fused_additive_gate(x, None, torch.tensor([0, 0, x.shape[1]]))[2]
    assert empty[0].isneginf().all() and empty[1].isfinite().all()


def with_state(function):
    def call(*tensors, **options):
        *rest, state = tensors
        return function(*rest, initial_state=state, output_final_state=True, **options)

    return call


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_hgrn_equals_recurrence(tokens, decay):
    torch.manual_seed(tokens)
    x, g = torch.randn(2, tokens, 24), DECAYS[decay](torch.rand(2, tokens, 24))
    tensors = [x, g, torch.randn(2, 24)]
    expected = run(with_state(naive_recurrent_hgrn), tensors)
    for function in (hgrn.chunk_hgrn, hgrn.fused_recurrent_hgrn):
        assert_same(run(with_state(function), tensors), expected)


def test_packed_hgrn_equals_separate_documents():
    x, g = torch.randn(1, sum(LENGTHS), 24), -torch.rand(1, sum(LENGTHS), 24)
    tensors = [x, g, torch.randn(len(LENGTHS), 24)]
    actual = run(lambda *x: with_state(hgrn.fused_recurrent_hgrn)(*x, cu_seqlens=BOUNDS), tensors)
    expected = run(
        separately(lambda *x: with_state(hgrn.fused_recurrent_hgrn)(*x[:-1], x[-1][0])), tensors
    )
    assert_same(actual, expected, 1e-6)


def rwkv6_inputs(tokens: int, decay: str, batch: int = 2) -> list[Tensor]:
    torch.manual_seed(tokens)
    r, k = torch.randn(2, batch, tokens, 3, 12).unbind()
    w, v = DECAYS[decay](torch.rand(batch, tokens, 3, 12)), torch.randn(batch, tokens, 3, 20)
    number = len(LENGTHS) if batch == 1 else batch
    return [r, k, v, w, torch.randn(3, 12), torch.randn(number, 3, 12, 20)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rwkv6_equals_recurrence(tokens, decay):
    def naive(r, k, v, w, u, h):
        r, k, v, w = (x.transpose(1, 2) for x in (r, k, v, w))
        o, h = naive_recurrent_rwkv6(r, k, v, w, u, initial_state=h, output_final_state=True)
        return o.transpose(1, 2), h

    tensors = rwkv6_inputs(tokens, decay)
    expected = run(naive, tensors)
    assert_same(run(with_state(rwkv6.chunk_rwkv6), tensors), expected)
    flipped = backwards(with_state(rwkv6.fused_recurrent_rwkv6), 4)
    assert_same(run(flipped, tensors), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_rwkv6_equals_separate_documents(reverse):
    r, k, v, w, u, h = rwkv6_inputs(sum(LENGTHS), "mild", batch=1)
    function = with_state(rwkv6.fused_recurrent_rwkv6)

    def packed(r, k, v, w, h):
        return function(r, k, v, w, u, h, reverse=reverse, cu_seqlens=BOUNDS)

    def parts(r, k, v, w, state):
        return function(r, k, v, w, u, state[0], reverse=reverse)

    tensors = [r, k, v, w, h]
    assert_same(run(packed, tensors), run(separately(parts), tensors), 1e-6)


def test_rwkv6_chunks_equal_one_token_at_a_time():
    r, k, v, w, u, h = rwkv6_inputs(40, "mild")
    function = with_state(rwkv6.fused_recurrent_rwkv6)
    step = one_by_one(lambda r, k, v, w, h: function(r, k, v, w, u, h), 40)
    assert_same(flat(step(r, k, v, w, h)), flat(function(r, k, v, w, u, h)), 1e-5)


@pytest.mark.parametrize("tokens", [2, 33, 100])
@pytest.mark.parametrize("normed", [False, True])
def test_polynomial_scores_equal_quadratic_attention(tokens, normed):
    torch.manual_seed(tokens)
    q, k = torch.randn(2, 2, tokens, 3, 16).unbind()
    v = torch.randn(2, tokens, 3, 20)

    def swapped(naive):
        return lambda *x: naive(*(y.transpose(1, 2) for y in x), use_norm=normed).transpose(1, 2)

    taylor = run(swapped(naive_parallel_based), [q, k, v])
    for function in (based.parallel_based, based.fused_chunk_based):
        assert_same(run(lambda *x, f=function: f(*x, use_norm=normed), [q, k, v]), taylor)
    # both divide by the sum of the scores and 1e-6, which a lone token may have almost orthogonal
    square = run(lambda *x: based.parallel_rebased(*x, eps=1e-6, use_normalize=normed), [q, k, v])
    assert_same(square, run(swapped(naive_parallel_rebased), [q, k, v]))
    o, z = based.parallel_rebased(q, k, v, eps=1e-6, return_both=True)
    assert_same([o / (z.unsqueeze(-1) + 1e-6)] if normed else [o], [square[0].transpose(1, 2)])


def scan_recurrence(x, dt, a, b, c, h):
    outputs = []
    for t in range(x.shape[1]):
        h = (dt[:, t].unsqueeze(-1) * a).exp() * h
        h = h + (dt[:, t] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(-2)
        outputs.append((h @ c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), h


@pytest.mark.parametrize("states_at_once", [1 << 20, 1])
@pytest.mark.parametrize("tokens", TOKENS)
def test_selective_scan_equals_recurrence(tokens, states_at_once, monkeypatch):
    monkeypatch.setitem(mamba.MAX_STATE_ELEMENTS, "cpu", states_at_once)
    torch.manual_seed(tokens)
    x, dt = torch.randn(2, tokens, 6), 3 * torch.rand(2, tokens, 6)
    b, c = torch.randn(2, 2, tokens, 4).unbind()
    tensors = [x, dt, -5 * torch.rand(6, 4), b, c, torch.randn(2, 6, 4)]
    assert_same(run(mamba.selective_scan, tensors), run(scan_recurrence, tensors))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "abc": lambda: ABCAttention(hidden_size=32, num_heads=2, num_slots=8, layer_idx=0),
    "mamba": lambda: Mamba(hidden_size=32, intermediate_size=64, state_size=4, layer_idx=0),
    "mamba2": lambda: Mamba2(hidden_size=32, head_dim=16, state_size=8, n_groups=2, layer_idx=0),
    "mamba3": lambda: Mamba3(
        hidden_size=32, head_dim=16, state_size=8, n_groups=2, is_outproj_norm=True, layer_idx=0
    ),
    "mamba3-gated": lambda: Mamba3(hidden_size=32, head_dim=16, state_size=8, layer_idx=0),
}


def build_layer(name: str) -> nn.Module:
    torch.manual_seed(1)
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return layer


def unserved(layer: type, method: str) -> Any:
    """fla's own method, which `install` has replaced."""
    uninstall()
    original = getattr(layer, method)
    install("torch")
    return original


def test_mamba_layer_equals_that_of_fla():
    layer = build_layer("mamba")
    x = torch.randn(2, 70, 32)
    mask = torch.arange(70) >= torch.tensor([[0], [9]])
    original = unserved(Mamba, "slow_forward")
    for options in ({}, {"attention_mask": mask}):
        actual = run(lambda x, o=options: mamba.slow_forward(layer, x, None, True, **o), [x])
        expected = run(lambda x, o=options: original(layer, x, None, True, **o), [x])
        assert_same(actual, expected)


def test_mamba2_layer_equals_that_of_fla():
    layer = Mamba2(hidden_size=32, head_dim=16, state_size=8, chunk_size=16, layer_idx=0)
    x = torch.randn(2, 70, 32)
    mask = torch.arange(70) >= torch.tensor([[0], [9]])
    original = unserved(Mamba2, "forward")
    for options in ({}, {"attention_mask": mask}):
        results = [
            run(lambda x, f=f, o=options: f(layer, x, **o)[0], [x])
            for f in (mamba2.forward_mamba2, original)
        ]
        assert_same(*results)


def mamba3_recurrence(layer: Mamba3, x: Tensor) -> Tensor:
    """Its definition, for groups shared by heads, token by token."""
    z, v, b, c, dt, rate, trap, angles = layer._project_and_split(x)
    v, z = (y.unflatten(-1, (layer.num_heads, -1)) for y in (v, z))
    dt, trap = F.softplus(dt + layer.dt_bias), trap.sigmoid()
    decay = (layer._compute_a(rate) * dt).exp()
    heads = layer.num_heads // layer.n_groups
    norms = [(layer.C_norm, c, layer.C_bias), (layer.B_norm, b, layer.B_bias)]
    q, k = (
        norm(y.unflatten(-1, (layer.n_groups, -1))).repeat_interleave(heads, 2) + bias.squeeze(1)
        for norm, y, bias in norms
    )
    turn = (angles.tanh()[:, :, None] * torch.pi * dt[..., None]).cumsum(1)
    turn = F.pad(turn, (0, layer.ssm_state_size // 2 - turn.shape[-1]))
    rotation = torch.polar(torch.ones_like(turn), turn)
    q, k = (
        torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * rotation).flatten(-2)
        for y in (q, k)
    )
    h, last = 0.0, torch.zeros_like(v[:, 0, :, :, None] * k[:, 0, :, None])
    outputs = []
    for t in range(x.shape[1]):
        now = v[:, t, :, :, None] * k[:, t, :, None]
        weight, own = dt[:, t, :, None, None], trap[:, t, :, None, None]
        h = decay[:, t, :, None, None] * (h + weight * (1 - own) * last) + weight * own * now
        last = now
        outputs.append((h @ q[:, t, :, :, None]).squeeze(-1) + layer.D[:, None] * v[:, t])
    y = torch.stack(outputs, 1)
    if layer.is_outproj_norm:
        return layer.out_proj(layer.norm(y.flatten(2), z.flatten(2)))
    return layer.out_proj((y * F.silu(z)).flatten(2))


@pytest.mark.parametrize("name", ["mamba3", "mamba3-gated"])
@pytest.mark.parametrize("tokens", [2, 40, 70])
def test_mamba3_layer_equals_recurrence(tokens, name):
    layer: Any = build_layer(name)
    x = torch.randn(2, tokens, 32)
    parameters = list(layer.parameters())

    def results(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        torch.manual_seed(0)
        projected = (y * torch.randn(y.shape)).sum()
        return [y.detach(), *torch.autograd.grad(projected, [leaf, *parameters])]

    actual = results(lambda x: mamba3.forward_mamba3(layer, x)[0])
    assert_same(actual, results(lambda x: mamba3_recurrence(layer, x)))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_one_token_at_a_time_equals_one_pass(name):
    layer = build_layer(name)
    x = torch.randn(2, 40, 32)
    with torch.no_grad():
        expected = layer(hidden_states=x)[0]
        cache, outputs = Cache(), []
        for part in x.split([20] + [1] * 20, 1):
            o, _, cache = layer(hidden_states=part, past_key_values=cache, use_cache=True)
            outputs.append(o)
    assert_same([torch.cat(outputs, 1)], [expected], 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_keeps_packed_documents_apart(name):
    layer = build_layer(name)
    x = torch.randn(1, sum(LENGTHS), 32)
    o = layer(hidden_states=x, cu_seqlens=BOUNDS)[0]
    parts = [layer(hidden_states=part)[0] for part in x.split(LENGTHS, 1)]
    assert_same([o], [torch.cat(parts, 1)], 1e-6)
    first, last = 41, 134
    x[:, :first] = torch.randn_like(x[:, :first])
    x[:, last:] = 7.0
    changed = layer(hidden_states=x, cu_seqlens=BOUNDS)[0]
    assert not torch.equal(changed[:, :first], o[:, :first])
    assert torch.equal(changed[:, first:last], o[:, first:last])
