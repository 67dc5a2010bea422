"""Sums, means and inverses of chunks, packing, and blocks by tokens equal their definitions."""

import pytest
import torch
from fla.ops.utils import (
    chunk_local_cumsum,
    mean_pooling,
    pack_sequence,
    prepare_block_csr,
    prepare_chunk_indices,
    solve_tril,
    unpack_sequence,
)
from torch import Tensor

from flame_accel.config.errors import UserError
from tests.helpers.gradients import assert_close, outputs_and_gradients

EDGES = torch.tensor([0, 5, 5, 37, 40])
CHUNKS = [(0, 5), (5, 21), (21, 37), (37, 40)]
"""The chunks of 16 tokens of the documents between `EDGES`."""


@pytest.mark.parametrize("reverse", [False, True])
def test_sums_restart_with_every_chunk(reverse: bool):
    x = torch.randn(1, 40, 3, 2)
    found = chunk_local_cumsum(x, 16, reverse=reverse, scale=2.0, cu_seqlens=EDGES)
    parts = [x[:, begin:end] for begin, end in CHUNKS]
    sums = [p.flip(1).cumsum(1).flip(1) if reverse else p.cumsum(1) for p in parts]
    assert_close([found], [2 * torch.cat(sums, 1)], 1e-6)
    assert chunk_local_cumsum(x[..., 0].bfloat16(), 16, output_dtype=None).dtype == torch.bfloat16


def test_means_of_chunks_have_gradients():
    x = torch.randn(1, 40, 3, 2)

    def expected(x: Tensor) -> Tensor:
        return torch.stack([x[:, begin:end].mean(1) for begin, end in CHUNKS], 1)

    def found(x: Tensor) -> Tensor:
        return mean_pooling(x, 16, EDGES)

    assert_close(outputs_and_gradients(found, [x]), outputs_and_gradients(expected, [x]), 1e-6)
    rows = torch.randn(2, 20, 3, 2)
    means = [rows[:, :16].mean(1), rows[:, 16:].mean(1)]
    assert_close([mean_pooling(rows, 16)], [torch.stack(means, 1)], 1e-6)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_inverses_of_chunks(size: int):
    matrices = torch.randn(1, 3, 2, size, size).tril(-1) / size
    tokens = 2 * size + 5
    a = matrices.transpose(2, 3).flatten(1, 2)[:, :tokens]
    inverse = (torch.eye(size) + matrices).inverse().transpose(2, 3).flatten(1, 2)[:, :tokens]
    assert_close([solve_tril(a)], [inverse], 1e-5)
    assert solve_tril(a.bfloat16(), output_dtype=None).dtype == torch.bfloat16
    with pytest.raises(UserError, match="not 8"):
        solve_tril(torch.zeros(1, 8, 1, 8))


@pytest.mark.parametrize("side", ["left", "right"])
def test_packing_and_unpacking_are_inverse(side: str):
    x = torch.randn(40, 3)
    rows = unpack_sequence(x, EDGES, side)
    assert rows.shape == (4, 32, 3) and not rows[1].any()
    held = rows[0, -5:] if side == "left" else rows[0, :5]
    assert torch.equal(held, x[:5])
    assert torch.equal(pack_sequence(rows, EDGES, side), x)
    wide = unpack_sequence(x, EDGES, side, torch.Size((4, 50, 3)))
    assert torch.equal(pack_sequence(wide, EDGES, side), x)
    with pytest.raises(UserError, match="shorter"):
        pack_sequence(rows[:, :20], EDGES, side)
    with pytest.raises(UserError, match="left or right"):
        pack_sequence(rows, EDGES, "top")


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_by_block_are_blocks_by_token_turned_over(packed: bool):
    torch.manual_seed(0)
    tokens, heads, slots, size = 40, 2, 3, 16
    blocks = torch.randint(-1, 3, (1, tokens, heads, slots))
    counts = torch.randint(1, slots + 1, (1, tokens, heads))
    edges = EDGES if packed else None
    indices = prepare_chunk_indices(EDGES, size) if packed else None
    found, offsets = prepare_block_csr(blocks, counts, edges, indices, 3, size)
    starts = torch.tensor([0, 1, 1, 3]) if packed else torch.tensor([0])
    expected: dict[int, list[int]] = {}
    for t in range(tokens):
        document = int(torch.searchsorted(EDGES[1:], t, right=True)) if packed else 0
        for head in range(heads):
            for block in blocks[0, t, head, : counts[0, t, head]].tolist():
                if block >= 0 and block * size <= t:
                    row = (int(starts[document]) + block) * heads + head
                    expected.setdefault(row if packed else head * 3 + block, []).append(t)
    for row in range(len(offsets) - 1):
        assert found[offsets[row] : offsets[row + 1]].tolist() == expected.get(row, [])
