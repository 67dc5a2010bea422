"""Based and ReBased equal quadratic attention with polynomial scores: values and gradients."""

import pytest
import torch
from fla.ops.based.naive import naive_parallel_based
from fla.ops.rebased.naive import naive_parallel_rebased

from flame_accel.kernels.recurrence import based
from tests.helpers.gradients import assert_close, outputs_and_gradients


@pytest.mark.parametrize("tokens", [2, 33, 100])
@pytest.mark.parametrize("normed", [False, True])
def test_polynomial_scores_equal_quadratic_attention(tokens, normed):
    torch.manual_seed(tokens)
    q, k = torch.randn(2, 2, tokens, 3, 16).unbind()
    v = torch.randn(2, tokens, 3, 20)

    def swapped(naive):
        return lambda *x: naive(*(y.transpose(1, 2) for y in x), use_norm=normed).transpose(1, 2)

    taylor = outputs_and_gradients(swapped(naive_parallel_based), [q, k, v])
    actual = outputs_and_gradients(lambda *x: based.parallel_based(*x, use_norm=normed), [q, k, v])
    assert_close(actual, taylor, absolute=1e-12)
    # both divide by the sum of the scores and 1e-6, which a lone token may have almost orthogonal
    square = outputs_and_gradients(
        lambda *x: based.parallel_rebased(*x, eps=1e-6, use_normalize=normed), [q, k, v]
    )
    assert_close(
        square, outputs_and_gradients(swapped(naive_parallel_rebased), [q, k, v]), absolute=1e-12
    )
    o, z = based.parallel_rebased(q, k, v, eps=1e-6, return_both=True)
    assert_close(
        [o / (z.unsqueeze(-1) + 1e-6)] if normed else [o],
        [square[0].transpose(1, 2)],
        absolute=1e-12,
    )
