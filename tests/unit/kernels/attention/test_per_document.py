"""A causal function of rows, applied to each document of a packed row by itself."""

import pytest
import torch

from tests.helpers.attention import LENGTHS, WINDOWS, assert_same, inputs, packed, separate


@pytest.mark.parametrize("window", WINDOWS)
def test_documents_equal_softmax_attention_of_each(window):
    pair = (-1, -1) if window is None else (window - 1, 0)
    tensors = inputs(1, sum(LENGTHS), sum(LENGTHS), 4, 2)
    actual = packed(LENGTHS, LENGTHS, tensors, window=pair)
    assert_same(actual, separate(LENGTHS, LENGTHS, tensors, window=pair))


@pytest.mark.parametrize("window", [(-1, -1), (20, 0)])
def test_a_document_does_not_depend_on_its_neighbours_bits(window):
    q, k, v = (x[0] for x in inputs(1, sum(LENGTHS), sum(LENGTHS), 4, 2))
    first, last = 41, 134
    before = packed(LENGTHS, LENGTHS, (q[None], k[None], v[None]), window=window)
    for x in (q, k, v):
        x[:first] = torch.randn_like(x[:first])
        x[last:] = torch.inf
    after = packed(LENGTHS, LENGTHS, (q[None], k[None], v[None]), window=window)
    assert not torch.equal(after[0][:first], before[0][:first])
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a[first:last], b[first:last])
