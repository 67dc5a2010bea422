"""RWKV6's recurrence equals fla's reference: values and all gradients."""

import pytest
import torch
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from torch import Tensor

from flame_accel.kernels.recurrence import rwkv6
from tests.helpers.gradients import assert_close, flatten, outputs_and_gradients
from tests.helpers.recurrence import (
    LENGTHS,
    LOG_DECAYS,
    boundaries,
    document_by_document,
    flipped,
    token_by_token,
    with_state,
)

TOKENS = [1, 5, 16, 64, 65, 150]


def draw_inputs(tokens: int, decay: str, batch: int = 2) -> list[Tensor]:
    torch.manual_seed(tokens)
    r, k = torch.randn(2, batch, tokens, 3, 12).unbind()
    w, v = LOG_DECAYS[decay](torch.rand(batch, tokens, 3, 12)), torch.randn(batch, tokens, 3, 20)
    number = len(LENGTHS) if batch == 1 else batch
    return [r, k, v, w, torch.randn(3, 12), torch.randn(number, 3, 12, 20)]


@pytest.mark.parametrize("decay", LOG_DECAYS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rwkv6_equals_recurrence(tokens, decay):
    def naive(r, k, v, w, u, h):
        r, k, v, w = (x.transpose(1, 2) for x in (r, k, v, w))
        o, h = naive_recurrent_rwkv6(r, k, v, w, u, initial_state=h, output_final_state=True)
        return o.transpose(1, 2), h

    tensors = draw_inputs(tokens, decay)
    expected = outputs_and_gradients(naive, tensors)
    assert_close(
        outputs_and_gradients(with_state(rwkv6.fused_recurrent_rwkv6), tensors),
        expected,
        absolute=1e-12,
    )
    backward_in_time = flipped(with_state(rwkv6.fused_recurrent_rwkv6), 4)
    assert_close(outputs_and_gradients(backward_in_time, tensors), expected, absolute=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_rwkv6_equals_separate_documents(reverse):
    r, k, v, w, u, h = draw_inputs(sum(LENGTHS), "mild", batch=1)
    function = with_state(rwkv6.fused_recurrent_rwkv6)

    def packed(r, k, v, w, h):
        return function(r, k, v, w, u, h, reverse=reverse, cu_seqlens=boundaries())

    def parts(r, k, v, w, state):
        return function(r, k, v, w, u, state[0], reverse=reverse)

    tensors = [r, k, v, w, h]
    assert_close(
        outputs_and_gradients(packed, tensors),
        outputs_and_gradients(document_by_document(parts), tensors),
        1e-6,
        absolute=1e-12,
    )


def test_rwkv6_chunks_equal_one_token_at_a_time():
    r, k, v, w, u, h = draw_inputs(40, "mild")
    function = with_state(rwkv6.fused_recurrent_rwkv6)
    step = token_by_token(lambda r, k, v, w, h: function(r, k, v, w, u, h), 40)
    assert_close(
        flatten(step(r, k, v, w, h)), flatten(function(r, k, v, w, u, h)), 1e-5, absolute=1e-12
    )
