"""Laws of the intra-chunk computations, by the number of chunks, their tokens and the key width."""

from collections.abc import Callable

import torch
from torch import Tensor

from flame_accel.kernels.recurrence.intra_chunk import MIN_GENTLE_STEP, IntraChunkTermsWithBackward
from tests.helpers.gradients import assert_close

P, C, K = 3, 32, 6
LOG_DECAYS = {
    "none": lambda: None,
    "head": lambda: -3 * torch.rand(P, C, 1) ** 4,
    "head-steep": lambda: -30 * torch.rand(P, C, 1),
    "gentle": lambda: -0.5 * torch.rand(P, C, K),
    "steep": lambda: -20 * torch.rand(P, C, K) ** 3,
    "mixed": lambda: torch.tensor([0.01, 1.0, 20.0]).view(P, 1, 1) * -(torch.rand(P, C, K) ** 3),
}
"""Log decays [P, C, 1 or K]; "mixed" has gentle and steep chunks."""

Compute = Callable[[Tensor, Tensor, Tensor | None], IntraChunkTermsWithBackward]
Definition = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]
"""Scores, decayed queries and keys, and the log of the decay of the chunk, by autograd."""


def assert_terms_and_gradients_equal(
    compute: Compute, definition: Definition, q: Tensor, k: Tensor, g: Tensor | None
) -> None:
    """The terms in fp32 equal their definition in fp64, and so do their gradients."""
    leaves = [x.double().requires_grad_() for x in (q, k, g) if x is not None]
    expected = definition(leaves[0], leaves[1], None if g is None else leaves[2])
    actual = compute(q, k, g)
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


def assert_chunk_keeps_bits_whatever_its_neighbours(compute: Compute, queries: int) -> None:
    """A chunk has the same bits alone as next to gentle and steep ones.

    Args:
        compute: What is checked.
        queries: Of a chunk.
    """
    torch.manual_seed(0)
    q, k = torch.randn(2, P, queries, K).unbind()
    g = LOG_DECAYS["mixed"]()
    steep = g.amin((1, 2)) < MIN_GENTLE_STEP
    assert steep.any() and not steep.all()
    together = compute(q, k, g)
    for i in range(P):
        alone = compute(*(x[i : i + 1] for x in (q, k, g)))
        assert torch.equal(alone.scores[0], together.scores[i])
        assert torch.equal(alone.chunk_decay[0], together.chunk_decay[i])
