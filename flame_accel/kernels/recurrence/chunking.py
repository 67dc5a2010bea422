"""How tokens are cut into chunks, the layout that every chunked operator shares; no arithmetic.

A chunk is `size` consecutive tokens of one sequence, the last one of a sequence padded with zeros.
Each sequence is cut from its own first token, so that what one document computes never depends on
its neighbours in a packed batch. Chunks are stored round by round: round `r` holds chunk `r` of
every sequence that is long enough, longest sequence first. A recurrence over chunks is then a loop
over rounds, each a contiguous slice, for fixed and ragged batches alike.

Shape letters: B batch, T tokens of a row, N sequences, M chunks, H heads, C tokens of a chunk, D
channels.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """The layout of one batch; the index tensors are None where all sequences are equally long."""

    batch: int
    tokens: int
    size: int
    rounds: tuple[tuple[int, int], ...]
    """First chunk and number of chunks of every round."""
    token_of_slot: Tensor | None = None
    """[M * C] token that each slot holds; 0 for padding."""
    padding: Tensor | None = None
    """Slots that hold no token."""
    slot_of_token: Tensor | None = None
    """[T]"""
    order: Tensor | None = None
    """[N] sequences, longest first."""


def cut(batch: int, tokens: int, cu_seqlens: Tensor | None, largest: int) -> Chunks:
    """Cuts a [batch, tokens] batch, or a packed row with boundaries `cu_seqlens` [N + 1].

    The chunk size is `largest`; if all sequences are shorter, the next power of two, at least 8.
    """
    if cu_seqlens is not None:
        return _cut_ragged(tuple(cu_seqlens.tolist()), largest, cu_seqlens.device)
    size = _chunk_size(tokens, largest)
    rounds = tuple((r * batch, batch) for r in range(-(-tokens // size)))
    return Chunks(batch=batch, tokens=tokens, size=size, rounds=rounds)


def _chunk_size(longest: int, largest: int) -> int:
    return min(largest, max(8, 1 << (longest - 1).bit_length()))


@lru_cache(maxsize=8)
def _cut_ragged(bounds: tuple[int, ...], largest: int, device: torch.device) -> Chunks:
    begin, end = torch.tensor(bounds[:-1]), torch.tensor(bounds[1:])
    size = _chunk_size(int((end - begin).max()), largest)
    num_chunks = (end - begin + size - 1) // size
    order = torch.argsort(num_chunks, descending=True, stable=True)
    lengths = num_chunks[order]
    counts = [int((lengths > r).sum()) for r in range(int(lengths[0]))]
    rounds, first = [], 0
    for count in counts:
        rounds.append((first, count))
        first += count
    round_of_chunk = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sequence = torch.cat([order[:count] for count in counts])
    token = (begin[sequence] + round_of_chunk * size)[:, None] + torch.arange(size)
    padded = (token >= end[sequence][:, None]).flatten()
    token = token.flatten().masked_fill(padded, 0)
    slot_of_token = torch.empty(bounds[-1], dtype=torch.long)
    slot_of_token[token[~padded]] = torch.arange(token.numel())[~padded]
    return Chunks(
        batch=1,
        tokens=bounds[-1],
        size=size,
        rounds=tuple(rounds),
        token_of_slot=token.to(device),
        padding=padded.nonzero().flatten().to(device),
        slot_of_token=slot_of_token.to(device),
        order=order.to(device),
    )


def to_chunks(x: Tensor, chunks: Chunks) -> Tensor:
    """[B, T, H, D] in any dtype -> contiguous fp32 [M, H, C, D], zeros in the padding."""
    size, (num_heads, width) = chunks.size, x.shape[2:]
    if chunks.token_of_slot is not None and chunks.padding is not None:
        x = x[0].index_select(0, chunks.token_of_slot).index_fill_(0, chunks.padding, 0)
        x = x.view(-1, size, num_heads, width).transpose(1, 2)
    else:
        missing = len(chunks.rounds) * size - chunks.tokens
        x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        x = x.view(chunks.batch, -1, size, num_heads, width).permute(1, 0, 3, 2, 4)
    y = x.to(torch.float32, memory_format=torch.contiguous_format)
    return y.contiguous().view(-1, num_heads, size, width)


def from_chunks(y: Tensor, chunks: Chunks, dtype: torch.dtype) -> Tensor:
    """Inverse of `to_chunks`: [M, H, C, D] -> contiguous [B, T, H, D] in `dtype`."""
    num_heads, size, width = y.shape[1:]
    if chunks.slot_of_token is not None:
        y = y.to(dtype).transpose(1, 2).reshape(-1, num_heads, width)
        return y.index_select(0, chunks.slot_of_token).unsqueeze(0)
    y = y.view(-1, chunks.batch, num_heads, size, width).permute(1, 0, 3, 2, 4)
    y = y.to(dtype).reshape(chunks.batch, -1, num_heads, width)
    return y[:, : chunks.tokens].contiguous()


def sort_sequences(state: Tensor, chunks: Chunks) -> Tensor:
    """Per-sequence states [N, ...] in the order of the layout (longest first)."""
    return state if chunks.order is None else state[chunks.order]


def unsort_sequences(state: Tensor, chunks: Chunks) -> Tensor:
    """Inverse of `sort_sequences`."""
    return (
        state
        if chunks.order is None
        else torch.empty_like(state).index_copy_(0, chunks.order, state)
    )
