"""Linear attention with decay: packed documents, states, single tokens, dtypes, determinism.

That its outputs and gradients equal the recurrence is in `test_gla`.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.recurrence.linear_attention import linear_attention
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    LENGTHS,
    boundaries,
    document_by_document,
    token_by_token,
)

K, V = 16, 24
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda r: -0.1 * r,
    "medium": lambda r: -2.0 * r,
    "spread": lambda r: -20.0 * r.square(),
    "resets": lambda r: torch.where(r > 0.9, -20.0, -0.01 * r),
}


def inputs(batch: int, tokens: int, decay: str, num_states: int | None = None) -> list[Tensor]:
    """Queries, keys, values, log decays per channel, initial states."""
    torch.manual_seed(tokens)
    q, k = torch.randn(2, batch, tokens, 2, K).unbind()
    v = torch.randn(batch, tokens, 2, V)
    g = DECAYS[decay](torch.rand(batch, tokens, 2, K))
    return [q, k, v, g, torch.randn(num_states or batch, 2, K, V)]


def attend(q, k, v, g, h, **options) -> tuple[Tensor, Tensor]:
    return linear_attention(q, k, v, g, scale=K**-0.5, initial_state=h, **options)


@pytest.mark.parametrize("decay", ["mild", "spread", "resets"])
@pytest.mark.parametrize("per_head", [False, True], ids=["channel", "head"])
def test_packed_documents_equal_separate_ones(decay, per_head):
    q, k, v, g, h = inputs(1, sum(LENGTHS), decay, len(LENGTHS))
    tensors = [q, k, v, g[..., :1].contiguous() if per_head else g, h]
    packed = outputs_and_gradients(lambda *x: attend(*x, cu_seqlens=boundaries()), tensors)
    separate = document_by_document(lambda *x: attend(*x[:-1], x[-1][0]))
    assert_close(packed, outputs_and_gradients(separate, tensors), 1e-6)


@pytest.mark.parametrize("decay", ["mild", "resets"])
def test_a_document_does_not_depend_on_its_neighbours_bits(decay):
    q, k, v, g, _ = inputs(1, sum(LENGTHS), decay)
    o, _ = attend(q, k, v, g, None, cu_seqlens=boundaries())
    first, last = 41, 134
    g[:, :first] = -20.0
    for x in (q, k, v):
        x[:, :first] = torch.randn_like(x[:, :first])
        x[:, last:] = 7.0
    changed, _ = attend(q, k, v, g, None, cu_seqlens=boundaries())
    assert not torch.equal(changed[:, :first], o[:, :first])
    assert torch.equal(changed[:, first:last], o[:, first:last])


def test_chunks_equal_one_token_at_a_time():
    tensors = inputs(2, 70, "medium")
    assert_close(token_by_token(attend, 70)(*tensors), attend(*tensors), 1e-5)


def test_packed_single_tokens_take_the_recurrence():
    q, k, v, g, h = inputs(1, 3, "mild", 3)
    o, state = attend(q, k, v, g, h, cu_seqlens=torch.arange(4))
    expected, final = attend(*(x.transpose(0, 1) for x in (q, k, v, g)), h)
    assert_close([o, state], [expected.transpose(0, 1), final], 1e-6)


def test_states_can_have_the_values_first():
    q, k, v, g, h = inputs(2, 45, "mild")
    o, state = attend(q, k, v, g, h)
    o_v, state_v = attend(q, k, v, g, h.mT.contiguous(), state_v_first=True)
    assert_close([o_v, state_v], [o, state.mT], 1e-6)


def test_no_initial_state_is_a_state_of_zeros():
    q, k, v, g, h = inputs(2, 45, "mild")
    assert_close(attend(q, k, v, g, None), attend(q, k, v, g, torch.zeros_like(h)), 0.0)


def test_outputs_keep_dtypes_under_autocast():
    q, k, v, g, h = inputs(2, 45, "mild")
    q, k, v = (x.bfloat16().requires_grad_() for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        o, state = attend(q, k, v, g, h)
        (o.float().sum() + state.sum()).backward()
    expected, final = attend(q.float(), k.float(), v.float(), g, h)
    assert (o.dtype, state.dtype, q.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert_close([o.float(), state], [expected, final], 5e-3)


def test_same_bits_every_time():
    tensors = inputs(2, 129, "spread")
    results = [outputs_and_gradients(attend, tensors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
