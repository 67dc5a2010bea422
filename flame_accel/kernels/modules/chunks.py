"""Functions of chunks of tokens, and packing, in PyTorch under fla's names; no layer calls them.

A chunk is C consecutive tokens of one sequence, the last one of a sequence what is left of it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence.sequences import split_sequences

TokensThenBlockEdges = tuple[Tensor, Tensor]
"""Tokens that have chosen a block, block by block; then where each block begins, and the end."""


def chunk_local_cumsum(
    g: Tensor,
    chunk_size: int,
    reverse: bool = False,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    output_dtype: torch.dtype | None = torch.float,
) -> Tensor:
    """Running sums of `g` [B, T, ...] within each chunk, from its end if `reverse`, times `scale`.

    They have the dtype of `g` if `output_dtype` is None.
    """
    sums = _map_tokens_of_chunks(
        lambda x: x.flip(2).cumsum(2).flip(2) if reverse else x.cumsum(2),
        g.float(),
        chunk_size,
        cu_seqlens,
    )
    return (sums if scale is None else sums * scale).to(output_dtype or g.dtype)


def mean_pooling(x: Tensor, chunk_size: int, cu_seqlens: Tensor | None = None) -> Tensor:
    """The mean of each chunk of `x` [B, T, H, D]: [B, number of chunks, H, D] in its dtype."""
    means = []
    for sequence in split_sequences(x, cu_seqlens):
        tokens = sequence.shape[1]
        sums = _cut_into_padded_chunks(sequence.float(), chunk_size).sum(2)
        counts = torch.full((sums.shape[1], 1, 1), chunk_size, device=x.device)
        if tokens % chunk_size:
            counts[-1] = tokens % chunk_size
        means.append(sums / counts)
    return torch.cat(means, 1).to(x.dtype)


@torch.no_grad()
def solve_tril(
    A: Tensor,
    cu_seqlens: Tensor | None = None,
    output_dtype: torch.dtype | None = torch.float,
) -> Tensor:
    """(I + A)^-1 of the strictly lower triangular matrices of chunks, in the layout of `A`.

    Args:
        A: [B, T, H, C]: for each token, its row of the matrix of its chunk.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        output_dtype: that of `A` if None.
    """
    size = A.shape[-1]
    if size not in (16, 32, 64):
        raise UserError(f"solve_tril takes chunks of 16, 32 or 64 tokens, not {size}")
    identity = torch.eye(size, device=A.device)

    def invert(chunks: Tensor) -> Tensor:
        matrices = chunks.transpose(2, 3).tril(-1)
        inverse = torch.linalg.solve_triangular(
            matrices, identity.expand_as(matrices), upper=False, unitriangular=True
        )
        return inverse.transpose(2, 3)

    inverse = _map_tokens_of_chunks(invert, A.float(), size, cu_seqlens)
    return inverse.to(output_dtype or A.dtype)


def pack_sequence(x: Tensor, cu_seqlens: Tensor, padding_side: str = "left") -> Tensor:
    """Tokens [cu_seqlens[-1], ...] of the rows of `x` [N, S, ...], without their padding."""
    return x[_slots_that_hold_tokens(cu_seqlens, x.shape[1], padding_side)]


def unpack_sequence(
    x: Tensor,
    cu_seqlens: Tensor,
    padding_side: str = "left",
    desired_shape: torch.Size | None = None,
) -> Tensor:
    """Inverse of `pack_sequence`: [N, S, ...], zeros in the padding; S is the longest if not given.

    Args:
        x: [cu_seqlens[-1], ...].
        cu_seqlens: [N + 1] boundaries of the sequences.
        padding_side: "left" or "right".
        desired_shape: of the result.
    """
    longest = int(cu_seqlens.diff().max())
    shape = (len(cu_seqlens) - 1, longest, *x.shape[1:]) if desired_shape is None else desired_shape
    held = _slots_that_hold_tokens(cu_seqlens, shape[1], padding_side)
    y = x.new_zeros(shape)
    y[held] = x
    return y


@torch.no_grad()
def prepare_block_csr(
    block_indices: Tensor,
    block_counts: Tensor | int,
    cu_seqlens: Tensor | None,
    chunk_indices: Tensor | None,
    num_blocks: int,
    block_size: int,
) -> TokensThenBlockEdges:
    """Which tokens have chosen a block, from which blocks tokens have chosen: a sparse matrix.

    Args:
        block_indices: blocks of the same sequence and up to the token's own [B, T, H, S]; others,
            such as -1, do not count.
        block_counts: how many of the S count, [B, T, H] or one number.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        chunk_indices: sequence and number in it of each block of a packed batch [blocks, 2].
        num_blocks: number of blocks of a row if not packed.
        block_size: tokens of a block.

    Returns:
        Tokens, counted through all rows; and [blocks + 1] edges of B * H * num_blocks blocks, or
        those of `chunk_indices` times H.
    """
    rows, tokens, heads, slots = block_indices.shape
    device = block_indices.device
    row = torch.arange(rows, device=device).view(-1, 1, 1, 1)
    token = torch.arange(tokens, device=device).view(1, -1, 1, 1)
    head = torch.arange(heads, device=device).view(1, 1, -1, 1)
    slot = torch.arange(slots, device=device)
    count = block_counts.unsqueeze(-1) if isinstance(block_counts, Tensor) else block_counts
    held = (block_indices >= 0) & (block_indices < num_blocks) & (slot < count)
    held &= block_indices * block_size <= token
    if cu_seqlens is None or chunk_indices is None:
        block = (row * heads + head) * num_blocks + block_indices
        number = rows * heads * num_blocks
    else:
        blocks_before = F.pad((-(-cu_seqlens.diff() // block_size)).cumsum(0), (1, 0))
        sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
        block = (blocks_before[sequence] + block_indices) * heads + head
        number = len(chunk_indices) * heads
    block, token = block[held], (row * tokens + token).expand_as(held)[held]
    order = block.argsort(stable=True)
    edges = F.pad(block.bincount(minlength=number).cumsum(0), (1, 0))
    return token[order].int(), edges.int()


def _slots_that_hold_tokens(cu_seqlens: Tensor, slots: int, padding_side: str) -> Tensor:
    """[N, S] bool."""
    if padding_side not in ("left", "right"):
        raise UserError(f"the padding_side is left or right, not {padding_side!r}")
    lengths = cu_seqlens.diff().unsqueeze(-1)
    if slots < int(lengths.max()):
        raise UserError(f"a row of {slots} tokens is shorter than a sequence of {lengths.max()}")
    slot = torch.arange(slots, device=cu_seqlens.device)
    return slot < lengths if padding_side == "right" else slot >= slots - lengths


def _cut_into_padded_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """[B, T, ...] -> [B, number of chunks, C, ...], zeros in the padding."""
    padding = (0, 0) * (x.dim() - 2) + (0, -x.shape[1] % chunk_size)
    return F.pad(x, padding).unflatten(1, (-1, chunk_size))


def _map_tokens_of_chunks(
    function: Callable[[Tensor], Tensor], x: Tensor, chunk_size: int, cu_seqlens: Tensor | None
) -> Tensor:
    """A function of chunks [B, number of chunks, C, ...] for all tokens [B, T, ...]."""
    parts = [
        function(_cut_into_padded_chunks(part, chunk_size)).flatten(1, 2)[:, : part.shape[1]]
        for part in split_sequences(x, cu_seqlens)
        if part.shape[1]
    ]
    return torch.cat(parts, 1) if parts else x
