"""HGRN equals its recurrence: values and all gradients."""

import pytest
import torch
from fla.ops.hgrn.naive import naive_recurrent_hgrn

from flame_accel.kernels.recurrence import hgrn
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    LENGTHS,
    LOG_DECAYS,
    boundaries,
    document_by_document,
    with_state,
)

TOKENS = [1, 5, 16, 64, 65, 150]


@pytest.mark.parametrize("decay", LOG_DECAYS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_hgrn_equals_recurrence(tokens, decay):
    torch.manual_seed(tokens)
    x, g = torch.randn(2, tokens, 24), LOG_DECAYS[decay](torch.rand(2, tokens, 24))
    tensors = [x, g, torch.randn(2, 24)]
    actual, expected = (
        outputs_and_gradients(with_state(function), tensors)
        for function in (hgrn.fused_recurrent_hgrn, naive_recurrent_hgrn)
    )
    assert_close(actual, expected, absolute=1e-12)


def test_packed_hgrn_equals_separate_documents():
    x, g = torch.randn(1, sum(LENGTHS), 24), -torch.rand(1, sum(LENGTHS), 24)
    tensors = [x, g, torch.randn(len(LENGTHS), 24)]
    actual = outputs_and_gradients(
        lambda *x: with_state(hgrn.fused_recurrent_hgrn)(*x, cu_seqlens=boundaries()), tensors
    )
    expected = outputs_and_gradients(
        document_by_document(lambda *x: with_state(hgrn.fused_recurrent_hgrn)(*x[:-1], x[-1][0])),
        tensors,
    )
    assert_close(actual, expected, 1e-6, absolute=1e-12)
