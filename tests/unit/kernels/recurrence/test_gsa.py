"""GSA, ABC and their additive gate equal recurrences; caches; packed documents."""

import pytest
import torch
from fla.layers import ABCAttention
from fla.ops.abc.naive import naive_recurrent_abc
from fla.ops.gsa.naive import naive_recurrent_gsa
from torch import Tensor, nn

from flame_accel.kernels.recurrence import gsa
from tests.helpers.gradients import assert_close, flatten, outputs_and_gradients
from tests.helpers.recurrence import (
    LENGTHS,
    LOG_DECAYS,
    assert_cached_tokens_equal_one_pass,
    assert_packed_documents_are_apart,
    boundaries,
    document_by_document,
    perturbed,
    token_by_token,
)

pytestmark = pytest.mark.usefixtures("torch_kernels")
TOKENS = [1, 5, 16, 64, 65, 150]
BOUNDARIES = boundaries()


def attention_inputs(tokens: int, decay: str, batch: int = 2) -> list[Tensor]:
    """q, k [.., 12], v [.., 20], slots [.., 8] with decays, states of keys and values."""
    torch.manual_seed(tokens)
    q, k = torch.randn(2, batch, tokens, 3, 12).unbind()
    v, s = torch.randn(batch, tokens, 3, 20), torch.rand(batch, tokens, 3, 8)
    g = LOG_DECAYS[decay](torch.rand(batch, tokens, 3, 8))
    number = len(LENGTHS) if batch == 1 else batch
    return [q, k, v, s, g, torch.randn(number, 3, 12, 8), torch.randn(number, 3, 8, 20)]


def with_pair_of_states(function):
    def call(q, k, v, s, g, hk, hv, **options):
        return function(q, k, v, s, g, initial_state=(hk, hv), output_final_state=True, **options)

    return call


@pytest.mark.parametrize("decay", ["mild", "resets"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_gsa_equals_recurrence(tokens, decay):
    tensors = attention_inputs(tokens, decay)
    expected = outputs_and_gradients(with_pair_of_states(naive_recurrent_gsa), tensors)
    found = outputs_and_gradients(with_pair_of_states(gsa.fused_recurrent_gsa), tensors)
    assert_close(found, expected, absolute=1e-12)


def test_gsa_with_shared_keys_and_without_gates_equals_recurrence():
    q, k, v, s, g, hk, hv = attention_inputs(70, "mild")
    q = torch.randn(2, 70, 6, 12)
    tensors = [q, k, v, s, g, hk, hv]
    naive = outputs_and_gradients(with_pair_of_states(naive_recurrent_gsa), tensors)
    ours = outputs_and_gradients(with_pair_of_states(gsa.fused_recurrent_gsa), tensors)
    assert_close(ours, naive, absolute=1e-12)
    assert_close(
        outputs_and_gradients(lambda *x: gsa.fused_recurrent_gsa(*x)[0], [q, k, v, s]),
        outputs_and_gradients(lambda *x: naive_recurrent_gsa(*x)[0], [q, k, v, s]),
        absolute=1e-12,
    )


def test_packed_gsa_equals_separate_documents():
    tensors = attention_inputs(sum(LENGTHS), "resets", batch=1)
    actual = outputs_and_gradients(
        lambda *x: with_pair_of_states(gsa.fused_recurrent_gsa)(*x, cu_seqlens=BOUNDARIES), tensors
    )
    expected = outputs_and_gradients(
        lambda *x: document_by_document(
            lambda *y: with_pair_of_states(gsa.fused_recurrent_gsa)(*y[:5], *y[5])
        )(*x[:5], list(x[5:])),
        tensors,
    )
    assert_close(actual, expected, 1e-6, absolute=1e-12)


def test_gsa_chunks_equal_one_token_at_a_time():
    tensors = attention_inputs(40, "mild")
    whole = with_pair_of_states(gsa.fused_recurrent_gsa)(*tensors)
    step = token_by_token(
        lambda *x: with_pair_of_states(gsa.fused_recurrent_gsa)(*x[:5], *x[5]), 40
    )
    assert_close(flatten(step(*tensors[:5], tensors[5:])), flatten(whole), 1e-5, absolute=1e-12)


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

    assert_close(
        outputs_and_gradients(ours, [q, k, v, s]),
        outputs_and_gradients(naive, [q, k, v, s]),
        absolute=1e-12,
    )


def test_abc_chunks_equal_one_token_at_a_time():
    q, k, v, s, *_ = attention_inputs(40, "mild")
    whole = gsa.chunk_abc(q, k, v, 10 * s, None, True)
    step = token_by_token(lambda *x: gsa.chunk_abc(*x, output_final_state=True), 40)
    assert_close(flatten(step(q, k, v, 10 * s, None)), flatten(whole), 1e-5, absolute=1e-12)


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
    assert_close(
        outputs_and_gradients(gsa.fused_additive_gate, [x, z]),
        outputs_and_gradients(gate_recurrence, [x, z]),
        absolute=1e-12,
    )


def test_additive_gate_of_packed_documents_without_a_past():
    x = torch.randn(1, sum(LENGTHS), 3, 8)
    k, g, z = outputs_and_gradients(lambda x: gsa.fused_additive_gate(x, None, BOUNDARIES), [x])[:3]
    assert (g[:, BOUNDARIES[:-1]] == 0).all() and (k[:, BOUNDARIES[:-1]] == 1).all()
    parts = [gsa.fused_additive_gate(part) for part in x.split(LENGTHS, 1)]
    assert torch.equal(k, torch.cat([p[0] for p in parts], 1))
    assert torch.equal(g, torch.cat([p[1] for p in parts], 1))
    assert torch.equal(z, torch.cat([p[2] for p in parts]))
    empty = gsa.fused_additive_gate(x, None, torch.tensor([0, 0, x.shape[1]]))[2]
    assert empty[0].isneginf().all() and empty[1].isfinite().all()


def build_layer() -> nn.Module:
    return perturbed(lambda: ABCAttention(hidden_size=32, num_heads=2, num_slots=8, layer_idx=0))


def test_layer_one_token_at_a_time_equals_one_pass():
    assert_cached_tokens_equal_one_pass(build_layer())


def test_layer_keeps_packed_documents_apart():
    assert_packed_documents_are_apart(build_layer())


def test_the_abc_layer_takes_its_arguments_by_position_as_in_fla():
    torch.manual_seed(0)
    layer = perturbed(lambda: ABCAttention(hidden_size=32, num_heads=2, num_slots=8, layer_idx=0))
    x = torch.randn(2, 10, 32)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        expected = layer(hidden_states=x, attention_mask=mask)[0]
        assert torch.equal(layer(x, mask)[0], expected)
        assert torch.equal(layer(x, mask, None, False, False)[0], expected)
