"""Linear attention with a decay per value channel equals its recurrence: values, all gradients."""

import pytest
import torch

from flame_accel.kernels.recurrence import gla
from flame_accel.kernels.recurrence.value_decay import linear_attention_with_value_decay
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    LENGTHS,
    LOG_DECAYS,
    boundaries,
    document_by_document,
    flipped,
    token_by_token,
)

SCALE = 12**-0.5


def inputs(tokens, decay, batch=2, num_states=2):
    """q, k [.., 12], slots [.., 8] with log decays, and states."""
    torch.manual_seed(tokens)
    q, k = torch.randn(2, batch, tokens, 3, 12).unbind()
    v, g = torch.rand(2, batch, tokens, 3, 8).unbind()
    return [q, k, v, LOG_DECAYS[decay](g), torch.randn(num_states, 3, 12, 8)]


def recurrence(q, k, v, g, h):
    outputs = []
    for t in range(q.shape[1]):
        h = h * g[:, t].exp().unsqueeze(-2) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-2) * SCALE @ h).squeeze(-2))
    return torch.stack(outputs, 1), h


def attend(q, k, v, g, h, **options):
    return linear_attention_with_value_decay(q, k, v, g, scale=SCALE, initial_state=h, **options)


def attend_under_the_name_of_fla(q, k, v, g, h, **options):
    return gla.fused_recurrent_gla(
        q, k, v, gv=g, initial_state=h, output_final_state=True, **options
    )


@pytest.mark.parametrize("decay", LOG_DECAYS)
@pytest.mark.parametrize("tokens", [1, 5, 16, 64, 65, 150])
def test_decay_of_the_values_equals_recurrence(tokens, decay):
    tensors = inputs(tokens, decay)
    expected = outputs_and_gradients(recurrence, tensors)
    by_name = attend_under_the_name_of_fla
    for function in (attend, by_name, flipped(by_name, 4)):
        assert_close(outputs_and_gradients(function, tensors), expected, absolute=1e-12)


@pytest.mark.parametrize("decay", ["mild", "resets"])
def test_packed_documents_equal_separate_ones(decay):
    tensors = inputs(sum(LENGTHS), decay, batch=1, num_states=len(LENGTHS))
    packed = outputs_and_gradients(lambda *x: attend(*x, cu_seqlens=boundaries()), tensors)
    separate = document_by_document(lambda *x: attend(*x[:-1], x[-1][0]))
    assert_close(packed, outputs_and_gradients(separate, tensors), 1e-6)


def test_chunks_equal_one_token_at_a_time():
    tensors = inputs(40, "mild")
    assert_close(token_by_token(attend, 40)(*tensors), attend(*tensors), 1e-5)


def test_states_can_have_the_values_first():
    q, k, v, g, h = inputs(45, "mild")
    o, state = attend(q, k, v, g, h)
    o_v, state_v = attend(q, k, v, g, h.mT.contiguous(), state_v_first=True)
    assert_close([o_v, state_v], [o, state.mT], 1e-6)


def test_queries_of_one_head_without_padding_stay_as_they_are():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 64, 1, 12).unbind()
    before = q.clone()
    attend(q, k, v, torch.zeros_like(v), None)
    assert torch.equal(q, before)
