"""Every chunk is computed in the way that its own decays allow, whatever the others need."""

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.recurrence.intra_chunk import (
    MAX_GENTLE_SUM,
    MIN_GENTLE_STEP,
    IntraChunkTermsWithBackward,
    compute_gentle_and_steep_chunks,
    exclusive_cumsum_tokens,
    reverse_cumsum_tokens,
)

C, K = 16, 4


def compute(factor: float, q: Tensor, k: Tensor, x: Tensor) -> IntraChunkTermsWithBackward:
    """Recognisable results, and gradients of shape and content."""

    def backward(saved: list[Tensor], *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        [saved_q, saved_k] = saved
        dscores, dq, dk, dlog_chunk_decay = grads
        assert len(saved_q) == len(dscores)
        return factor * dq + saved_q, factor * dk + saved_k, dlog_chunk_decay[:, None] + dscores

    decay = x[:, -1:].mT
    return IntraChunkTermsWithBackward(
        factor * (q @ k.mT), factor * q, factor * k, decay, backward, [q, k]
    )


def compute_gentle_from_cumulative_g(
    q: Tensor, k: Tensor, cumulative_g: Tensor
) -> IntraChunkTermsWithBackward:
    return compute(2.0, q, k, cumulative_g)


def compute_steep_from_g(q: Tensor, k: Tensor, g: Tensor) -> IntraChunkTermsWithBackward:
    return compute(3.0, q, k, g)


def log_decays(*steep: bool) -> Tensor:
    g = -0.1 * torch.rand(len(steep), C, K)
    g[torch.tensor(steep), 5, 1] = MIN_GENTLE_STEP - 0.1
    return g


@pytest.mark.parametrize(
    "steep", [(False, False, False), (True, True, True), (True, False, False, True, False)]
)
def test_each_chunk_takes_its_own_way_in_both_passes(steep):
    torch.manual_seed(0)
    q, k = torch.randn(2, len(steep), C, K).unbind()
    g = log_decays(*steep)
    actual = compute_gentle_and_steep_chunks(
        q, k, g, compute_gentle_from_cumulative_g, compute_steep_from_g
    )
    grads = [torch.randn(len(steep), *shape) for shape in ((C, K), (C, K), (C, K), (K,))]
    dq, dk, dg = actual.backward(actual.saved, *grads)
    for i, is_steep in enumerate(steep):
        one = [x[i : i + 1] for x in (q, k, g if is_steep else g.cumsum(1))]
        expected = (compute_steep_from_g if is_steep else compute_gentle_from_cumulative_g)(*one)
        for a, e in zip(actual[:4], expected[:4], strict=True):
            assert torch.equal(a[i : i + 1], e)
        gradients = expected.backward(expected.saved, *(x[i : i + 1] for x in grads))
        for a, e in zip((dq, dk, dg), gradients, strict=True):
            assert torch.equal(a[i : i + 1], e)


@pytest.mark.parametrize("half", [slice(0, C // 2), slice(C // 2, C)], ids=["start", "end"])
def test_chunk_is_steep_by_its_sum_from_the_middle_to_either_end(half):
    q = torch.randn(1, C, K)
    for total, factor in ((-MAX_GENTLE_SUM + 0.1, 2.0), (-MAX_GENTLE_SUM - 0.1, 3.0)):
        g = torch.zeros(1, C, K)
        g[:, half, 2] = total / (C // 2)
        assert g.min() > MIN_GENTLE_STEP
        result = compute_gentle_and_steep_chunks(
            q, q, g, compute_gentle_from_cumulative_g, compute_steep_from_g
        )
        assert torch.equal(result.q_from_start, factor * q)


def test_sums_over_later_and_earlier_tokens():
    x = torch.arange(1.0, 9.0).view(1, 4, 2)
    assert reverse_cumsum_tokens(x)[0, :, 0].tolist() == [16, 15, 12, 7]
    assert exclusive_cumsum_tokens(x)[0, :, 1].tolist() == [0, 2, 6, 12]
