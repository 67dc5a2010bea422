"""Intra-chunk results for queries and erase keys, and gradients, equal the definition in fp64."""

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.recurrence.delta_rule_intra_chunk import compute_intra_chunk_terms
from flame_accel.kernels.recurrence.intra_chunk import MIN_GENTLE_STEP
from tests.helpers.gradients import assert_close

P, C, K = 3, 32, 6
LOG_DECAYS = {
    "none": lambda: None,
    "head": lambda: -3 * torch.rand(P, C, 1) ** 4,
    "gentle": lambda: -0.5 * torch.rand(P, C, K),
    "steep": lambda: -20 * torch.rand(P, C, K) ** 3,
    "mixed": lambda: torch.tensor([0.01, 1.0, 20.0]).view(P, 1, 1) * -(torch.rand(P, C, K) ** 3),
}


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
    g = LOG_DECAYS[name]()
    leaves = [x.double().requires_grad_() for x in (q, k, g) if x is not None]
    expected = definition(
        leaves[0], leaves[1], None if g is None else leaves[2], erase_before_decay
    )
    actual = compute_intra_chunk_terms(q, k, g, erase_before_decay)
    assert_close(actual[:3], [x.float() for x in expected[:3]])
    if g is not None:
        assert_close([actual.chunk_decay.squeeze(-1)], [expected[3].exp().float()])
    grads = [torch.randn(x.shape) for x in expected[:3]]
    dlog_chunk_decay = torch.randn(P, K)
    weights = [x.double() for x in grads]
    if g is None:
        gradients = torch.autograd.grad(expected[:3], leaves, weights)
    else:
        per_head = dlog_chunk_decay.double().sum(-1, keepdim=True)
        weights.append(per_head if g.shape[-1] == 1 else dlog_chunk_decay.double())
        gradients = torch.autograd.grad(expected, leaves, weights)
    found = actual.backward(actual.saved, *grads, None if g is None else dlog_chunk_decay)
    assert (found[2] is None) == (g is None)
    assert_close([x for x in found if x is not None], [x.float() for x in gradients])


@pytest.mark.parametrize("erase_before_decay", [False, True])
def test_chunk_has_the_same_bits_next_to_gentle_and_steep_ones(erase_before_decay):
    torch.manual_seed(0)
    q, k = torch.randn(2, P, 2 * C, K).unbind()
    g = LOG_DECAYS["mixed"]()
    steep = g.amin((1, 2)) < MIN_GENTLE_STEP
    assert steep.any() and not steep.all()
    together = compute_intra_chunk_terms(q, k, g, erase_before_decay)
    for i in range(P):
        alone = compute_intra_chunk_terms(*(x[i : i + 1] for x in (q, k, g)), erase_before_decay)
        assert torch.equal(alone.scores[0], together.scores[i])
        assert torch.equal(alone.chunk_decay[0], together.chunk_decay[i])
