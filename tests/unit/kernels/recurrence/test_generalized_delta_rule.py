"""The generalized delta rule in chunks equals its recurrence in fp64: values and all gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    boundaries,
    document_by_document,
    token_by_token,
)

SCALE = 0.3
SHAPES = {
    "one-token": (2, 1, 2, 16, 8),
    "less-than-a-chunk": (2, 5, 2, 8, 24),
    "whole-chunks": (2, 64, 2, 16, 8),
    "one-token-more": (1, 97, 2, 16, 24),
    "ragged-end": (2, 80, 2, 24, 16),
}
"""Batch size, tokens, heads, key width, value width."""
LONG_SHAPES = {name: shape for name, shape in SHAPES.items() if shape[1] > 32}
DECAYS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "undecayed": None,
    "mild": lambda r: -0.1 * r,
    "medium": lambda r: -2.0 * r,
    "steady": lambda r: -3.0 - r,
    "all-strong": lambda r: -20.0 + 0.0 * r,
    "spread": lambda r: -20.0 * r.square(),
    "resets": lambda r: torch.where(r > 0.9, -20.0, -0.01 * r),
}
RULES = {
    "delta": {"has_b": False, "erase_before_decay": False},
    "comba": {"has_b": False, "erase_before_decay": True},
    "dplr": {"has_b": True, "erase_before_decay": True},
}
LENGTHS = (1, 40, 73, 1, 66, 5)
Inputs = list[Tensor | None]


def inputs(
    batch: int, tokens: int, heads: int, keys: int, values: int, decay: str, rule: str,
    per_head: bool = False, sequences: int = 0,
) -> Inputs:  # fmt: skip
    """q, k, v, a, b, g, initial state; keys have the length 1, strengths lie between 0 and 1."""
    torch.manual_seed(tokens)
    q, k, a = F.normalize(torch.randn(3, batch, tokens, heads, keys), dim=-1).unbind()
    v = torch.randn(batch, tokens, heads, values)
    strength = torch.rand(batch, tokens, heads, 1)
    has_b = RULES[rule]["has_b"]
    form = DECAYS[decay]
    rates = torch.rand(batch, tokens, heads, 1 if per_head else keys)
    return [
        q,
        k,
        v,
        a if has_b else k * strength,
        a * strength * torch.rand(keys) if has_b else None,
        None if form is None else form(rates),
        torch.randn(sequences or batch, heads, keys, values),
    ]


def recurrence(rule: str, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    q, k, v, a, b, g, state = (None if x is None else x.double() for x in tensors)
    outputs = []
    for t in range(q.shape[1]):
        decayed = state if g is None else state * g[:, t].exp().unsqueeze(-1)
        seen = state if RULES[rule]["erase_before_decay"] else decayed
        erased = (a[:, t].unsqueeze(-1) * seen).sum(-2, keepdim=True)
        state = decayed + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        state = state - (k if b is None else b)[:, t].unsqueeze(-1) * erased
        outputs.append(SCALE * (q[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(outputs, 1), state


def chunked(rule: str, *tensors: Tensor | None, **options: Tensor | bool) -> tuple[Tensor, Tensor]:
    *rest, initial_state = tensors
    erase_before_decay = RULES[rule]["erase_before_decay"]
    return generalized_delta_rule(
        *rest,
        scale=SCALE,
        erase_before_decay=erase_before_decay,
        initial_state=initial_state,
        **options,
    )


@pytest.mark.parametrize("rule", ["delta", "dplr"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decay_per_channel_equals_recurrence(shape, decay, rule):
    tensors = inputs(*shape, decay, rule)
    expected = outputs_and_gradients(lambda *x: recurrence(rule, *x), tensors)
    assert_close(outputs_and_gradients(lambda *x: chunked(rule, *x), tensors), expected)


@pytest.mark.parametrize("rule", ["delta", "comba", "dplr"])
@pytest.mark.parametrize("decay", ["mild", "all-strong", "spread", "resets"])
@pytest.mark.parametrize("shape", LONG_SHAPES.values(), ids=LONG_SHAPES)
def test_decay_per_head_equals_recurrence(shape, decay, rule):
    tensors = inputs(*shape, decay, rule, per_head=True)
    expected = outputs_and_gradients(lambda *x: recurrence(rule, *x), tensors)
    assert_close(outputs_and_gradients(lambda *x: chunked(rule, *x), tensors), expected)


def test_equal_keys_in_full_strength_stay_exact():
    q, k, v, *_ = inputs(1, 97, 2, 16, 8, "undecayed", "delta")
    k = k[:, :1].expand_as(k).contiguous()
    for strength in (1.0, 2.0):
        tensors = [q, k, v, strength * k, None, None, torch.randn(1, 2, 16, 8)]
        expected = outputs_and_gradients(lambda *x: recurrence("delta", *x), tensors)
        assert_close(outputs_and_gradients(lambda *x: chunked("delta", *x), tensors), expected)


@pytest.mark.parametrize("rule", ["delta", "dplr"])
@pytest.mark.parametrize("decay", ["undecayed", "mild", "resets"])
def test_packed_documents_equal_separate_ones(decay, rule):
    tensors = inputs(1, sum(LENGTHS), 2, 16, 24, decay, rule, sequences=len(LENGTHS))
    cu_seqlens = boundaries(LENGTHS)
    separate = document_by_document(lambda *x: chunked(rule, *x[:-1], x[-1][0]), LENGTHS)
    packed = outputs_and_gradients(lambda *x: chunked(rule, *x, cu_seqlens=cu_seqlens), tensors)
    assert_close(packed, outputs_and_gradients(separate, tensors), 1e-6)


@pytest.mark.parametrize("per_head", [False, True], ids=["channel", "head"])
@pytest.mark.parametrize("rule", ["delta", "dplr"])
@pytest.mark.parametrize("decay", ["mild", "resets"])
def test_a_document_does_not_depend_on_its_neighbours_bits(decay, rule, per_head):
    tensors = inputs(1, sum(LENGTHS), 2, 16, 24, decay, rule, per_head)
    cu_seqlens = boundaries(LENGTHS)
    tensors[-1] = None
    o, _ = chunked(rule, *tensors, cu_seqlens=cu_seqlens)
    first, last = 41, 114
    for x in tensors[:5]:
        if x is not None:
            x[:, :first] = torch.randn_like(x[:, :first])
            x[:, last:] = 0.7
    tensors[5][:, :first] = -20.0
    changed, _ = chunked(rule, *tensors, cu_seqlens=cu_seqlens)
    assert not torch.equal(changed[:, :first], o[:, :first])
    assert torch.equal(changed[:, first:last], o[:, first:last])


@pytest.mark.parametrize("rule", ["delta", "dplr"])
@pytest.mark.parametrize("decay", ["undecayed", "medium"])
def test_chunks_equal_one_token_at_a_time(decay, rule):
    tensors = inputs(2, 70, 2, 16, 24, decay, rule)
    one_by_one = token_by_token(lambda *x: chunked(rule, *x), 70)
    assert_close(one_by_one(*tensors), chunked(rule, *tensors), 1e-5)


def test_packed_single_tokens_take_the_recurrence():
    tensors = inputs(3, 1, 2, 16, 24, "mild", "dplr")
    expected, final = chunked("dplr", *tensors)
    *rest, h = tensors
    row = [None if x is None else x.transpose(0, 1) for x in rest]
    o, state = chunked("dplr", *row, h, cu_seqlens=torch.arange(4))
    assert_close([o, state], [expected.transpose(0, 1), final], 1e-6)


def test_state_layout_and_its_default():
    tensors = inputs(2, 45, 2, 16, 24, "mild", "delta")
    *rest, h = tensors
    o, state = chunked("delta", *tensors)
    o_v, state_v = chunked("delta", *rest, h.mT.contiguous(), state_v_first=True)
    assert_close([o_v, state_v], [o, state.mT], 1e-6)
    none, zero = chunked("delta", *rest, None), chunked("delta", *rest, torch.zeros_like(h))
    assert_close(list(none), list(zero), 0.0)


def test_outputs_keep_dtypes_under_autocast():
    q, k, v, a, _, g, h = inputs(2, 45, 2, 16, 24, "mild", "delta")
    q, k, v, a = (x.bfloat16().requires_grad_() for x in (q, k, v, a))
    with torch.autocast("cpu", torch.bfloat16):
        o, state = chunked("delta", q, k, v, a, None, g, h)
        (o.float().sum() + state.sum()).backward()
    expected, final = chunked("delta", q.float(), k.float(), v.float(), a.float(), None, g, h)
    assert (o.dtype, state.dtype, k.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert_close([o.float(), state], [expected, final], 5e-3)


@pytest.mark.parametrize("decay", ["undecayed", "spread"])
def test_same_bits_every_time(decay):
    tensors = inputs(2, 97, 2, 16, 24, decay, "dplr")
    results = [outputs_and_gradients(lambda *x: chunked("dplr", *x), tensors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
