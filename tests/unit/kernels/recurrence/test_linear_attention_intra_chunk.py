"""Intra-chunk scores, decayed queries and keys, and gradients equal the definition in fp64."""

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.recurrence.linear_attention_intra_chunk import (
    compute_decayed_scores_queries_keys,
)
from tests.helpers.intra_chunk import (
    LOG_DECAYS,
    C,
    K,
    P,
    assert_chunk_keeps_bits_whatever_its_neighbours,
    assert_terms_and_gradients_equal,
)


def definition(q: Tensor, k: Tensor, g: Tensor | None) -> tuple[Tensor, ...]:
    """Scores, decayed queries and keys, and the log of the decay of the chunk."""
    total = torch.zeros(P, C, 1, dtype=q.dtype) if g is None else g.cumsum(1)
    exponents = total.unsqueeze(2) - total.unsqueeze(1)
    later = torch.ones(C, C, dtype=torch.bool).triu(1)
    decays = exponents.masked_fill(later[None, :, :, None], -torch.inf).exp()
    scores = (q.unsqueeze(2) * k.unsqueeze(1) * decays).sum(-1)
    return scores, q * total.exp(), k * (total[:, -1:] - total).exp(), total[:, -1]


@pytest.mark.parametrize("name", LOG_DECAYS)
def test_values_and_gradients_equal_definition(name):
    torch.manual_seed(0)
    q, k = torch.randn(2, P, C, K).unbind()
    assert_terms_and_gradients_equal(
        compute_decayed_scores_queries_keys, definition, q, k, LOG_DECAYS[name]()
    )


def test_chunk_has_the_same_bits_next_to_gentle_and_steep_ones():
    assert_chunk_keeps_bits_whatever_its_neighbours(compute_decayed_scores_queries_keys, queries=C)


@pytest.mark.parametrize("width", [1, K])
def test_nothing_overflows_at_any_strength(width):
    q, k = torch.randn(2, 1, C, K).unbind()
    g = torch.zeros(1, C, width)
    g[:, ::5] = -1e4
    actual = compute_decayed_scores_queries_keys(q, k, g)
    grads = [torch.randn(x.shape) for x in actual[:3]]
    found = actual.backward(actual.saved, *grads, torch.randn(1, K))
    assert all(x.isfinite().all() for x in (*actual[:4], *found))
