"""Cuts sequences into chunks of tokens, in the layout that all chunked operators share.

A chunk is C consecutive tokens of one sequence; the last chunk of a sequence is padded with zeros.
Each sequence is cut from its own first token, so that what one document computes never depends on
its neighbours in a packed batch. Chunks are stored round by round: round `r` holds chunk `r` of
every sequence that is long enough, longest sequence first. A recurrence over chunks is then a loop
over rounds, each a contiguous slice, for fixed and ragged batches alike.

Shape letters: B batch, T tokens of a row, N sequences, M chunks, H heads, C tokens of a chunk,
D width.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLayout:
    """Where the tokens of a batch lie in its chunks; index tensors are None for unpacked rows."""

    batch_size: int
    num_tokens: int
    """Tokens of a row."""
    chunk_size: int
    rounds: tuple[tuple[int, int], ...]
    """First chunk and number of chunks of every round."""
    token_of_slot: Tensor | None = None
    """[M * C] token that each slot holds; 0 for padding."""
    padding_slots: Tensor | None = None
    """Slots that hold no token."""
    slot_of_token: Tensor | None = None
    """[T]"""
    longest_first: Tensor | None = None
    """[N] indices of the sequences, sorted by length."""


class ScannedStates(NamedTuple):
    """States of a recurrence over chunks."""

    at_chunk_starts: Tensor
    """[P, ...] that each chunk starts from, P chunks of all heads."""
    final: Tensor
    """[N, ...] after the last chunk of each sequence."""


def build_chunk_layout(
    batch_size: int, num_tokens: int, cu_seqlens: Tensor | None, max_chunk_size: int
) -> ChunkLayout:
    """The chunks of a [B, T] batch, or of a packed row with boundaries `cu_seqlens` [N + 1].

    The chunk size is `max_chunk_size`, or, if all sequences are shorter, the smallest power of two
    that holds the longest, at least 8.
    """
    if cu_seqlens is not None:
        boundaries = tuple(cu_seqlens.tolist())
        return _build_packed_chunk_layout(boundaries, max_chunk_size, cu_seqlens.device)
    size = _choose_chunk_size(num_tokens, max_chunk_size)
    rounds = tuple((r * batch_size, batch_size) for r in range(-(-num_tokens // size)))
    return ChunkLayout(batch_size=batch_size, num_tokens=num_tokens, chunk_size=size, rounds=rounds)


def _choose_chunk_size(longest_sequence: int, max_chunk_size: int) -> int:
    return min(max_chunk_size, max(8, 1 << (longest_sequence - 1).bit_length()))


@lru_cache(maxsize=8)
def _build_packed_chunk_layout(
    boundaries: tuple[int, ...], max_chunk_size: int, device: torch.device
) -> ChunkLayout:
    begin, end = torch.tensor(boundaries[:-1]), torch.tensor(boundaries[1:])
    size = _choose_chunk_size(int((end - begin).max()), max_chunk_size)
    num_chunks = (end - begin + size - 1) // size
    longest_first = torch.argsort(num_chunks, descending=True, stable=True)
    lengths = num_chunks[longest_first]
    counts = [int((lengths > r).sum()) for r in range(int(lengths[0]))]
    rounds, first = [], 0
    for count in counts:
        rounds.append((first, count))
        first += count
    round_of_chunk = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sequence = torch.cat([longest_first[:count] for count in counts])
    token = (begin[sequence] + round_of_chunk * size)[:, None] + torch.arange(size)
    is_padding = (token >= end[sequence][:, None]).flatten()
    token = token.flatten().masked_fill(is_padding, 0)
    slot_of_token = torch.empty(boundaries[-1], dtype=torch.long)
    slot_of_token[token[~is_padding]] = torch.arange(token.numel())[~is_padding]
    return ChunkLayout(
        batch_size=1,
        num_tokens=boundaries[-1],
        chunk_size=size,
        rounds=tuple(rounds),
        token_of_slot=token.to(device),
        padding_slots=is_padding.nonzero().flatten().to(device),
        slot_of_token=slot_of_token.to(device),
        longest_first=longest_first.to(device),
    )


def to_padded_fp32_chunk_batch(x: Tensor, layout: ChunkLayout) -> Tensor:
    """[B, T, H, D] in any dtype -> contiguous fp32 [M, H, C, D], zeros in the padding."""
    size, (num_heads, width) = layout.chunk_size, x.shape[2:]
    if layout.token_of_slot is not None and layout.padding_slots is not None:
        x = x[0].index_select(0, layout.token_of_slot).index_fill_(0, layout.padding_slots, 0)
        x = x.view(-1, size, num_heads, width).transpose(1, 2)
    else:
        missing = len(layout.rounds) * size - layout.num_tokens
        x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        x = x.view(layout.batch_size, -1, size, num_heads, width).permute(1, 0, 3, 2, 4)
    y = x.to(torch.float32, memory_format=torch.contiguous_format)
    return y.contiguous().view(-1, num_heads, size, width)


def from_padded_chunk_batch(chunks: Tensor, layout: ChunkLayout, dtype: torch.dtype) -> Tensor:
    """Its inverse: [M, H, C, D] -> contiguous [B, T, H, D] in `dtype`."""
    y = chunks
    num_heads, size, width = y.shape[1:]
    if layout.slot_of_token is not None:
        y = y.to(dtype).transpose(1, 2).reshape(-1, num_heads, width)
        return y.index_select(0, layout.slot_of_token).unsqueeze(0)
    y = y.view(-1, layout.batch_size, num_heads, size, width).permute(1, 0, 3, 2, 4)
    y = y.to(dtype).reshape(layout.batch_size, -1, num_heads, width)
    return y[:, : layout.num_tokens].contiguous()


def sort_states_longest_first(states: Tensor, layout: ChunkLayout) -> Tensor:
    """States [N, ...] of the sequences, sorted as the rounds of the layout are."""
    return states if layout.longest_first is None else states[layout.longest_first]


def restore_state_order(states: Tensor, layout: ChunkLayout) -> Tensor:
    """Inverse of `sort_states_longest_first`."""
    if layout.longest_first is None:
        return states
    return torch.empty_like(states).index_copy_(0, layout.longest_first, states)
