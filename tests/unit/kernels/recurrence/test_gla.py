"""Linear attention under fla's names equals fla's references: values and all gradients."""

from collections.abc import Callable

import pytest
import torch
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence import gla
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    LENGTHS,
    boundaries,
    flipped,
    with_state,
)

SHAPES = {
    "one-token": (2, 1, 2, 16, 8),
    "less-than-a-chunk": (2, 5, 2, 8, 24),
    "whole-chunks": (2, 64, 3, 16, 8),
    "one-token-more": (1, 129, 2, 16, 24),
    "ragged-end": (2, 300, 2, 24, 16),
}
"""Batch size, tokens, heads, key width, value width."""
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda r: -0.1 * r,
    "none": lambda r: 0.0 * r,
    "medium": lambda r: -2.0 * r,
    "steady": lambda r: -3.0 - r,
    "all-strong": lambda r: -20.0 + 0.0 * r,
    "spread": lambda r: -20.0 * r.square(),
    "resets": lambda r: torch.where(r > 0.9, -20.0, -0.01 * r),
}
every_decay = pytest.mark.parametrize("decay", DECAYS)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def inputs(batch: int, tokens: int, heads: int, keys: int, values: int, decay: str) -> list[Tensor]:
    """Queries, keys, values, log decays per channel, initial state."""
    torch.manual_seed(tokens)
    q, k = torch.randn(2, batch, tokens, heads, keys).unbind()
    v = torch.randn(batch, tokens, heads, values)
    g = DECAYS[decay](torch.rand(batch, tokens, heads, keys))
    return [q, k, v, g, torch.randn(batch, heads, keys, values)]


@every_decay
@every_shape
def test_decay_per_channel_equals_recurrence(shape, decay):
    tensors = inputs(*shape, decay)
    expected = outputs_and_gradients(with_state(naive_recurrent_gla), tensors)
    for function in (gla.chunk_gla, gla.fused_recurrent_gla):
        assert_close(outputs_and_gradients(with_state(function), tensors), expected)


@every_decay
@every_shape
def test_decay_per_head_equals_recurrence(shape, decay):
    q, k, v, g, h = inputs(*shape, decay)
    tensors = [q, k, v, g[..., 0].contiguous(), h]
    expected = outputs_and_gradients(
        lambda q, k, v, g, h: naive_recurrent_simple_gla(q, k, v, g, initial_state=h), tensors
    )
    assert_close(outputs_and_gradients(with_state(gla.chunk_simple_gla), tensors), expected)


@every_shape
def test_no_decay_equals_recurrence(shape):
    q, k, v, _, h = inputs(*shape, "none")
    tensors = [q, k, v, h]
    expected = outputs_and_gradients(with_state(naive_recurrent_linear_attn), tensors)
    assert_close(outputs_and_gradients(with_state(gla.fused_chunk_simple_gla), tensors), expected)


def test_constant_decay_and_parallel_form_equal_references():
    q, k, v, _, _ = inputs(2, 70, 4, 16, 24, "none")
    gamma = (1 - 2.0 ** (-5.0 - torch.arange(4))).log()
    expected = naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    for function in (gla.chunk_simple_gla, gla.fused_recurrent_simple_gla):
        assert_close([function(q, k, v, g_gamma=gamma)[0]], [expected])
    g = gamma.expand(2, 70, 4)
    assert_close([gla.parallel_simple_gla(q, k, v, g)[0]], [expected])


def test_state_layout_and_direction():
    q, k, v, g, h = inputs(2, 45, 2, 16, 24, "mild")
    o, state = gla.chunk_gla(q, k, v, g, initial_state=h, output_final_state=True)
    o_v, state_v = gla.chunk_gla(
        q, k, v, g, initial_state=h.mT.contiguous(), output_final_state=True, state_v_first=True
    )
    assert_close([o_v, state_v], [o, state.mT], 1e-6)
    assert_close(flipped(with_state(gla.fused_recurrent_gla), 4)(q, k, v, g, h), [o, state], 1e-6)
    assert gla.chunk_gla(q, k, v, g)[1] is None


def test_reversed_packed_documents_equal_separate_ones():
    q, k, v, g, _ = inputs(1, sum(LENGTHS), 2, 16, 24, "mild")
    o, state = gla.fused_recurrent_gla(
        q, k, v, g, output_final_state=True, reverse=True, cu_seqlens=boundaries()
    )
    parts = zip(*(x.split(LENGTHS, 1) for x in (q, k, v, g)), strict=True)
    outputs = [gla.fused_recurrent_gla(*p, output_final_state=True, reverse=True) for p in parts]
    expected = [torch.cat([x[0] for x in outputs], 1), torch.cat([x[1] for x in outputs])]
    assert_close([o, state], expected, 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum_restarts_with_every_document(reverse):
    x = torch.randn(1, sum(LENGTHS), 2, 3)
    parts = [p.flip(1).cumsum(1).flip(1) if reverse else p.cumsum(1) for p in x.split(LENGTHS, 1)]
    actual = gla.chunk_global_cumsum(x, reverse=reverse, cu_seqlens=boundaries(), scale=2.0)
    assert_close([actual], [2 * torch.cat(parts, 1)], 1e-6)


@pytest.mark.parametrize("decays", [True, False])
def test_attention_scores_are_what_outputs_are_made_of(decays):
    q, k, v, _, _ = inputs(2, 40, 2, 16, 16, "mild")
    g = -5 * torch.rand(2, 40, 2) ** 4 if decays else None
    o, scores = gla.parallel_simple_gla(q, k, v, g, output_attentions=True)
    assert scores is not None and not scores.triu(1).any()
    assert_close([o], [(scores @ v.transpose(1, 2)).transpose(1, 2)], 1e-5)


def test_what_has_no_implementation_is_refused():
    q, k, v, g, _ = inputs(1, 5, 2, 16, 16, "mild")
    with pytest.raises(UserError, match="not both"):
        gla.fused_recurrent_gla(q, k, v, gk=g, gv=g)
    with pytest.raises(UserError, match="attention scores"):
        gla.parallel_simple_gla(q, k, v, output_attentions=True, cu_seqlens=torch.tensor([0, 5]))
