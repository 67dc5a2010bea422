"""Softmax attention over rows of one length equals its formula, for every window."""

from functools import partial

import pytest

from flame_accel.kernels.attention.flash_attention import flash_attn_func
from tests.helpers.attention import (
    WINDOWS,
    assert_same,
    inputs,
    reference,
)
from tests.helpers.gradients import outputs_and_gradients


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 90), (5, 90), (64, 64), (129, 129), (300, 300), (90, 5)]
)
def test_rows_equal_softmax_attention(queries, keys, window):
    pair = (-1, -1) if window is None else (window - 1, 0)
    for groups, scale in ((4, None), (2, 0.3)):
        tensors = inputs(2, queries, keys, 4, groups)
        ours = partial(flash_attn_func, softmax_scale=scale, causal=True, window_size=pair)
        theirs = partial(reference, window=pair, scale=scale)
        assert_same(outputs_and_gradients(ours, tensors), outputs_and_gradients(theirs, tensors))


@pytest.mark.parametrize("window", [(-1, -1), (-1, 3), (4, -1), (4, 3), (0, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 30), (30, 30), (20, 30), (200, 200)])
def test_both_sides_of_a_window_equal_softmax_attention(queries, keys, window):
    tensors = inputs(1, queries, keys, 2, 1)
    actual = outputs_and_gradients(partial(flash_attn_func, window_size=window), tensors)
    assert_same(
        actual, outputs_and_gradients(partial(reference, causal=False, window=window), tensors)
    )
