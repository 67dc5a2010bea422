"""Intra-chunk results for queries and erase keys, and gradients, equal the definition in fp64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.recurrence.delta_rule_intra_chunk import (
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


def definition(
    q: Tensor, k: Tensor, g: Tensor | None, erase_before_decay: bool
) -> tuple[Tensor, ...]:
    """Scores, decayed queries [q; a] and keys, and the log of the decay of the chunk."""
    total = torch.zeros(P, C, 1, dtype=q.dtype) if g is None else g.cumsum(1)
    before = torch.cat((torch.zeros_like(total[:, :1]), total[:, :-1]), 1)
    seen = torch.cat((total, before if erase_before_decay else total), 1)
    kinds = k.shape[1] // C
    exponents = seen.unsqueeze(2) - total.repeat(1, kinds, 1).unsqueeze(1)
    ones = torch.ones(C, C, dtype=torch.bool)
    hidden = torch.cat((ones.triu(1), ones.triu(0))).repeat(1, kinds)
    decays = exponents.masked_fill(hidden[None, :, :, None], -torch.inf).exp()
    scores = (q.unsqueeze(2) * k.unsqueeze(1) * decays).sum(-1)
    to_end = (total[:, -1:] - total).repeat(1, kinds, 1).exp()
    return scores, q * seen.exp(), k * to_end, total[:, -1]


@pytest.mark.parametrize("erase_before_decay", [False, True])
@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("name", LOG_DECAYS)
def test_values_and_gradients_equal_definition(name, kinds, erase_before_decay):
    torch.manual_seed(0)
    q, k = torch.randn(P, 2 * C, K), torch.randn(P, kinds * C, K)
    compute, expected = (
        partial(function, erase_before_decay=erase_before_decay)
        for function in (compute_decayed_scores_queries_keys, definition)
    )
    assert_terms_and_gradients_equal(compute, expected, q, k, LOG_DECAYS[name]())


@pytest.mark.parametrize("erase_before_decay", [False, True])
def test_chunk_has_the_same_bits_next_to_gentle_and_steep_ones(erase_before_decay):
    compute = partial(compute_decayed_scores_queries_keys, erase_before_decay=erase_before_decay)
    assert_chunk_keeps_bits_whatever_its_neighbours(compute, queries=2 * C)
