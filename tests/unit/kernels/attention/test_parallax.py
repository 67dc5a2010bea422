"""Parallax continues after padding and a cache."""

import torch
from fla.ops.parallax.naive import naive_parallax

from flame_accel.kernels.attention import (
    parallax,
)
from tests.helpers.attention_variants import assert_same, keys, queries


def test_parallax_continues_after_padding_and_a_cache():
    torch.manual_seed(0)
    q, r, k, v = queries(30), queries(30), keys(30), keys(30)
    expected = naive_parallax(*(x[:, 4:] for x in (q, r, k, v)))
    start = torch.tensor([4])
    prompt = parallax.parallax_decode(*(x[:, :20] for x in (q, r, k, v)), cache_start=start)
    rest = parallax.parallax_decode(q[:, 20:], r[:, 20:], k, v, cache_start=start)
    assert prompt[:, :4].eq(0).all()
    assert_same([torch.cat([prompt[:, 4:], rest], 1)], [expected])
