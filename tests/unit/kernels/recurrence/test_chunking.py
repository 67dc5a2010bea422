"""Chunks hold every token once, in order, each sequence from its own first token."""

import pytest
import torch

from flame_accel.kernels.recurrence.chunking import (
    build_chunk_layout,
    from_padded_chunk_batch,
    restore_state_order,
    sort_states_longest_first,
    to_padded_fp32_chunk_batch,
)
from tests.helpers.recurrence import (
    LENGTHS,
    boundaries,
)


@pytest.mark.parametrize(
    ("batch_size", "num_tokens", "lengths"),
    [(2, 1, None), (3, 64, None), (2, 65, None), (1, sum(LENGTHS), LENGTHS), (1, 5, (0, 5, 0))],
)
def test_tokens_return_from_chunks_as_they_were(batch_size, num_tokens, lengths):
    cu_seqlens = None if lengths is None else boundaries(lengths)
    layout = build_chunk_layout(batch_size, num_tokens, cu_seqlens, 32)
    x = torch.randn(batch_size, num_tokens, 2, 3).bfloat16()
    chunks = to_padded_fp32_chunk_batch(x, layout)
    assert chunks.dtype == torch.float32
    assert chunks.shape == (sum(count for _, count in layout.rounds), 2, layout.chunk_size, 3)
    assert torch.equal(from_padded_chunk_batch(chunks, layout, torch.bfloat16), x)
    # whatever is not a token is zero
    assert chunks.count_nonzero() == x.count_nonzero()


def test_rounds_hold_the_same_chunk_of_every_sequence_longest_first():
    lengths = (3, 70, 33)
    layout = build_chunk_layout(1, sum(lengths), boundaries(lengths), 32)
    assert layout.chunk_size == 32
    assert layout.rounds == ((0, 3), (3, 2), (5, 1))
    numbers = torch.arange(1.0, 1 + sum(lengths)).view(1, -1, 1, 1)
    first_tokens = to_padded_fp32_chunk_batch(numbers, layout)[:, 0, 0, 0].tolist()
    assert first_tokens == [4, 74, 1, 36, 106, 68]


@pytest.mark.parametrize(("longest", "size"), [(1, 8), (9, 16), (16, 16), (31, 32), (100, 32)])
def test_chunks_are_no_longer_than_sequences_need(longest, size):
    assert build_chunk_layout(2, longest, None, 32).chunk_size == size
    packed = build_chunk_layout(1, longest + 1, boundaries((1, longest)), 32)
    assert packed.chunk_size == size


def test_states_follow_the_order_of_the_layout_and_return():
    lengths = (3, 70, 33)
    layout = build_chunk_layout(1, sum(lengths), boundaries(lengths), 32)
    states = torch.tensor([0.0, 1.0, 2.0])
    assert sort_states_longest_first(states, layout).tolist() == [1, 2, 0]
    assert torch.equal(
        restore_state_order(sort_states_longest_first(states, layout), layout), states
    )
    rows = build_chunk_layout(3, 70, None, 32)
    assert restore_state_order(sort_states_longest_first(states, rows), rows) is states
