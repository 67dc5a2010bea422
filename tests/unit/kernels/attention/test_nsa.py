"""Native sparse attention continues after a cache."""

import torch

from tests.helpers.attention_variants import HEADS, VARIANTS, assert_same, inputs


def test_sparse_attention_continues_after_a_cache():
    variant = VARIANTS["nsa"]
    q, k, v, *gated = inputs(variant, 50)
    whole = variant.ours(q, k, v, *gated)
    last = variant.ours(*(x[:, 45:] if x.shape[2] == HEADS else x for x in (q, k, v, *gated)))
    assert_same([last], [whole[:, 45:]], 1e-5)
    pair = (torch.tensor([0, 5, 6]), torch.tensor([0, 50, 100]))
    both = [torch.cat([x[:, 45:], x[:, -1:]], 1) for x in (q, *gated)]
    twice = [torch.cat([x, x], 1) for x in (k, v)]
    packed = variant.ours(both[0], *twice, *both[1:], cu_seqlens=pair)
    assert_same([packed], [torch.cat([whole[:, 45:], whole[:, -1:]], 1)], 1e-5)
