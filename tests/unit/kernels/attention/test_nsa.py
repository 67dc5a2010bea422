"""Native sparse attention continues after a cache, and takes blocks that are given."""

import pytest
import torch
from fla.ops.attn.naive import naive_parallel_attn
from fla.ops.nsa import parallel_nsa
from fla.ops.nsa.naive import naive_nsa_selection

from flame_accel.config.errors import UserError
from tests.helpers.attention_variants import (
    GROUPS,
    HEADS,
    VARIANTS,
    WIDTH,
    assert_same,
    inputs,
)
from tests.helpers.gradients import assert_close, assert_same_results


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


def draw_blocks(tokens: int, slots: int, block_size: int) -> torch.Tensor:
    """The token's own block first, the others in any order; -1 for none."""
    own = (torch.arange(tokens) // block_size).view(1, -1, 1, 1).expand(1, -1, GROUPS, 1)
    others = torch.rand(1, tokens, GROUPS, tokens // block_size).argsort(-1)[..., : slots - 1]
    return torch.cat((own, others.masked_fill(others >= own, -1)), -1)


def test_blocks_that_are_given_are_those_attended_to():
    torch.manual_seed(0)
    tokens, size = 40, 8
    q = torch.randn(1, tokens, HEADS, WIDTH)
    k, v = torch.randn(2, 1, tokens, GROUPS, WIDTH).unbind()
    blocks = draw_blocks(tokens, 3, size)

    def ours(q, k, v):
        return parallel_nsa(q, k, v, block_indices=blocks, block_counts=3, block_size=size)

    def reference(q, k, v):
        return naive_nsa_selection(q, k, v, blocks, size)

    assert_same_results(ours, reference, [q, k, v], tolerance=1e-4)
    counts = torch.randint(1, 4, (1, tokens, GROUPS))
    found = parallel_nsa(q, k, v, block_indices=blocks, block_counts=counts, block_size=size)
    slots = torch.arange(3)
    hidden = blocks.masked_fill(slots >= counts.unsqueeze(-1), -1)
    assert_close([found], [naive_nsa_selection(q, k, v, hidden, size)])


def test_the_scale_is_that_of_the_blocks_and_not_of_the_window():
    torch.manual_seed(0)
    q = torch.randn(1, 40, HEADS, WIDTH)
    k, v = torch.randn(2, 1, 40, GROUPS, WIDTH).unbind()
    gate, blocks = torch.rand(1, 40, HEADS), draw_blocks(40, 3, 8)
    o = parallel_nsa(
        q, k, v, g_swa=gate, block_indices=blocks, block_counts=3, block_size=8, window_size=5,
        scale=1.0,
    )  # fmt: skip
    near, _ = naive_parallel_attn(q, k, v, window_size=5)
    selected = naive_nsa_selection(q, k, v, blocks, 8, 1.0)
    assert_close([o], [selected + near * gate.unsqueeze(-1)])


def test_given_blocks_of_documents_and_gates():
    torch.manual_seed(0)
    q = torch.randn(1, 40, HEADS, WIDTH)
    k, v = torch.randn(2, 1, 40, GROUPS, WIDTH).unbind()
    g_cmp, g_slc = torch.rand(2, 1, 40, HEADS).unbind()
    blocks = torch.cat([draw_blocks(n, 2, 8) for n in (16, 24)], 1)
    options = {"block_counts": 2, "block_size": 8}
    o = parallel_nsa(
        q, k, v, g_cmp, g_slc, block_indices=blocks, cu_seqlens=torch.tensor([0, 16, 40]), **options
    )
    parts = []
    for begin, end in ((0, 16), (16, 40)):
        x = [y[:, begin:end] for y in (q, k, v, blocks)]
        compressed = parallel_nsa(
            *x[:3],
            g_cmp=torch.ones_like(x[0][..., 0]),
            g_slc=torch.zeros_like(x[0][..., 0]),
            **options,
        )
        selected = naive_nsa_selection(*x, 8)
        gates = (y[:, begin:end].unsqueeze(-1) for y in (g_cmp, g_slc))
        parts.append(sum(y * g for y, g in zip((compressed, selected), gates, strict=True)))
    assert_close([o], [torch.cat(parts, 1)])


def test_a_query_needs_to_be_told_its_blocks():
    q, k = torch.randn(1, 8, HEADS, WIDTH), torch.randn(1, 8, GROUPS, WIDTH)
    with pytest.raises(UserError, match="block_indices"):
        parallel_nsa(q, k, k)
