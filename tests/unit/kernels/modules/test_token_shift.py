"""The token shift equals fla's reference, starts anew in every document, and follows a cache."""

import pytest
import torch
from fla.modules.token_shift import token_shift_ref

from flame_accel.kernels.modules.token_shift import token_shift
from tests.helpers.gradients import assert_same_results

B, T, K = 2, 45, 16


@pytest.mark.parametrize("lengths", [None, (1, 33, 11)])
def test_shift_equals_reference_and_starts_with_the_cache(lengths):
    x = torch.randn(2 if lengths is None else 1, T, K)
    cu_seqlens = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    assert_same_results(
        lambda x: token_shift(x, cu_seqlens),
        lambda x: token_shift_ref(x, cu_seqlens),
        [x],
        tolerance=1e-4,
    )
    whole, last = token_shift(x, cu_seqlens, output_cache=True)
    tails = x[:, -1] if lengths is None else torch.stack([s[0, -1] for s in x.split(lengths, 1)])
    assert torch.equal(last, tails)
    cached = token_shift(x, cu_seqlens, cache=last)
    added = torch.zeros_like(x)
    if lengths is None:
        added[:, 0] = last
    else:
        added[0, cu_seqlens[:-1]] = last
    torch.testing.assert_close(cached, whole + added)


def test_tokens_after_a_shift_follow_the_cache():
    x = torch.randn(B, T, K)
    whole, final = token_shift(x, output_cache=True)
    first, cache = token_shift(x[:, :20], output_cache=True)
    second, last = token_shift(x[:, 20:], cache=cache, output_cache=True)
    assert torch.equal(torch.cat((first, second), 1), whole)
    assert torch.equal(last, final)
