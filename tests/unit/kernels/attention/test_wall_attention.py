"""Wall attention's cache of decayed keys gives what one pass computes."""

import math

import pytest
import torch
from fla.ops.wall_attn import build_wall_kv_cache, parallel_wall_attn, parallel_wall_attn_decode

from tests.helpers.gradients import assert_close

HEADS, GROUPS, WIDTH, TOKENS, CHUNK = 4, 2, 16, 40, 16


@pytest.mark.parametrize("window_size", [None, 7])
@pytest.mark.parametrize("with_scalars", [False, True])
def test_the_last_queries_of_a_cache_equal_one_pass(window_size, with_scalars):
    torch.manual_seed(0)
    q, k = torch.randn(2, TOKENS, HEADS, WIDTH), torch.randn(2, TOKENS, GROUPS, WIDTH)
    v, sink = torch.randn(2, TOKENS, GROUPS, 24), torch.randn(HEADS)
    g = -0.1 * torch.rand(2, TOKENS, HEADS, WIDTH)
    scalars = -torch.rand(2, TOKENS, HEADS) if with_scalars else None
    expected = parallel_wall_attn(
        q, k, v, g, g_scalar=scalars, sink_bias=sink, scale=0.3, window_size=window_size
    )
    sums = g.cumsum(1) / math.log(2)
    keys, starts = build_wall_kv_cache(k, sums, CHUNK)
    o, total = parallel_wall_attn_decode(
        q[:, -5:], v, sums[:, -5:], keys, starts, sink, 0.3, CHUNK,
        None if scalars is None else scalars.cumsum(1) / math.log(2), window_size,
    )  # fmt: skip
    assert_close([o], [expected[:, -5:]])
    assert total.shape == (2, 5, HEADS)
