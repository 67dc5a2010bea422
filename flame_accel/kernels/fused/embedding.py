"""Embedding look-ups whose gradient has the same bits every time.

PyTorch adds the gradients of a token's occurrences in no fixed order, where there are more than
3,072 tokens. Here a stable sort brings the occurrences of each token together, which are added in
fp32, in an order that their number and place decide. Shape letters: N tokens, V rows, D channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SLICE = 32
"""Occurrences that are added by one program; of more frequent tokens, then sums of slices."""
SLICE_COLUMNS = 256
ROWS = 8
"""Occurrences, or sums of slices, of a token that a program adds at a time."""
COLUMNS = 512
"""Channels of a program."""


@triton.jit(do_not_specialize=["N"])
def _sum_slice_ends_kernel(
    dout,
    tokens,
    order,
    starts,
    sums,
    N,
    D: tl.constexpr,
    SLICE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of a slice of the sorted occurrences: those of its first token, and those of its last."""
    number = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = number * SLICE + tl.arange(0, SLICE)
    inside = places < N
    first = tl.load(tokens + number * SLICE)
    last = tl.load(tokens + tl.minimum(number * SLICE + SLICE, N) - 1)
    of_first = tl.load(starts + first + 1) - tl.load(starts + first)
    of_last = tl.load(starts + last + 1) - tl.load(starts + last)
    # others are added without slices
    if tl.maximum(of_first, of_last) > SLICE:
        token = tl.load(tokens + places, mask=inside, other=-1)
        positions = tl.load(order + places, mask=inside, other=0)
        mask = inside[:, None] & (columns < D)[None, :]
        rows = tl.load(dout + positions[:, None] * D + columns[None, :], mask=mask, other=0.0)
        rows = rows.to(tl.float32)
        sum_of_first = tl.sum(tl.where((token == first)[:, None], rows, 0.0), axis=0)
        sum_of_last = tl.sum(tl.where((token == last)[:, None], rows, 0.0), axis=0)
        here = sums + number * 2 * D + columns
        tl.store(here, sum_of_first, mask=columns < D)
        tl.store(here + D, sum_of_last, mask=columns < D)


@triton.jit
def _sum_occurrences_kernel(
    dout,
    order,
    starts,
    sums,
    dweight,
    padding_idx,
    D: tl.constexpr,
    SLICE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(starts + token), tl.load(starts + token + 1)
    if token == padding_idx:
        end = begin
    tile = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if end - begin <= SLICE:
        for place in range(begin, end, ROWS):
            places = place + tl.arange(0, ROWS)
            positions = tl.load(order + places, mask=places < end, other=0)
            mask = (places < end)[:, None] & (columns < D)[None, :]
            rows = tl.load(dout + positions[:, None] * D + columns[None, :], mask=mask, other=0.0)
            tile += rows.to(tl.float32)
    else:
        first_slice, slices_end = begin // SLICE, (end - 1) // SLICE + 1
        for number in range(first_slice, slices_end, ROWS):
            numbers = number + tl.arange(0, ROWS)
            # the first slice may begin with another token
            lines = (2 * numbers + (numbers * SLICE < begin)).to(tl.int64)
            mask = (numbers < slices_end)[:, None] & (columns < D)[None, :]
            tile += tl.load(sums + lines[:, None] * D + columns[None, :], mask=mask, other=0.0)
    total = tl.sum(tile, axis=0)
    tl.store(dweight + token * D + columns, total.to(dweight.dtype.element_ty), mask=columns < D)


# launches have options that are no parameters
_SUM_SLICE_ENDS: Any = _sum_slice_ends_kernel
_SUM: Any = _sum_occurrences_kernel


def sum_gradients_of_tokens(
    ids: Tensor, dout: Tensor, *, rows: int, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    """The gradient [V, D] of an embedding's weight; 0 where a token does not occur.

    Args:
        ids: [N], of the tokens.
        dout: [N, D], contiguous, of any floating dtype.
        rows: V.
        padding_idx: Row without a gradient.
        dtype: Of the result.
    """
    channels, device = dout.shape[-1], dout.device
    tokens, order = torch.sort(ids.int(), stable=True)
    all_rows = torch.arange(rows + 1, device=device, dtype=tokens.dtype)
    starts = torch.searchsorted(tokens, all_rows, out_int32=True)
    slices = -(-len(ids) // SLICE)
    sums = torch.empty(slices, 2, channels, dtype=torch.float32, device=device)
    _SUM_SLICE_ENDS[(slices, -(-channels // SLICE_COLUMNS))](
        dout, tokens, order, starts, sums, len(ids), channels, SLICE, SLICE_COLUMNS
    )
    dweight = torch.empty(rows, channels, dtype=dtype, device=device)
    _SUM[(rows, -(-channels // COLUMNS))](
        dout, order, starts, sums, dweight, -1 if padding_idx is None else padding_idx,
        channels, SLICE, ROWS, COLUMNS,
    )  # fmt: skip
    return dweight


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding_idx, ctx.dtype = len(weight), padding_idx, weight.dtype
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        dweight = sum_gradients_of_tokens(
            ids.flatten(),
            grads[0].contiguous().view(ids.numel(), -1),
            rows=ctx.rows,
            padding_idx=ctx.padding_idx,
            dtype=ctx.dtype,
        )
        return dweight, None, None


def embedding_forward(module: nn.Embedding, input: Tensor) -> Tensor:
    """As `torch.nn.Embedding.forward`, for calls that `supports_embedding_training_call`."""
    return _Embedding.apply(module.weight, input, module.padding_idx)


def supports_embedding_training_call(module: nn.Embedding, input: Tensor) -> bool:
    """Whether a call is for ours: one with a gradient of a whole weight, and no special option."""
    weight = module.weight
    plain = module.max_norm is None and not (module.scale_grad_by_freq or module.sparse)
    learns = torch.is_grad_enabled() and weight.requires_grad and input.numel() > 0
    return plain and learns and weight.is_cuda and not isinstance(weight, DTensor)
