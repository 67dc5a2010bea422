"""Embedding look-ups whose gradient has the same bits every time.

PyTorch adds the gradients of a token's occurrences in no fixed order, where there are more than
3,072 tokens. Here a stable sort brings the occurrences of each token together, and one program adds
them in the order of their positions, in fp32. Shape letters: N tokens, V rows, D channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

COLUMNS = 128
"""Channels of a program."""
ROWS = 32
"""Occurrences of a token that a program adds at a time."""


@triton.jit
def _sum_occurrences_kernel(
    dout,
    order,
    starts,
    dweight,
    padding_idx,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(starts + token), tl.load(starts + token + 1)
    if token == padding_idx:
        end = begin
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    # most tokens occur a few times at most, and a tile of rows would be nearly empty
    few = tl.where(end - begin < ROWS // 4, end, begin)
    for place in range(begin, few):
        position = tl.load(order + place)
        row = tl.load(dout + position * D + columns, mask=columns < D, other=0.0)
        total += row.to(tl.float32)
    tile = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(tl.where(few == end, end, begin), end, ROWS):
        places = first + tl.arange(0, ROWS)
        positions = tl.load(order + places, mask=places < end, other=0)
        rows = tl.load(
            dout + positions[:, None] * D + columns[None, :],
            mask=(places < end)[:, None] & (columns < D)[None, :],
            other=0.0,
        )
        tile += rows.to(tl.float32)
    total += tl.sum(tile, axis=0)
    tl.store(dweight + token * D + columns, total.to(dweight.dtype.element_ty), mask=columns < D)


# launches have options that are no parameters
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
    channels = dout.shape[-1]
    dweight = torch.empty(rows, channels, dtype=dtype, device=dout.device)
    tokens, order = torch.sort(ids, stable=True)
    all_rows = torch.arange(rows + 1, device=ids.device, dtype=ids.dtype)
    starts = torch.searchsorted(tokens, all_rows)
    grid = (rows, -(-channels // COLUMNS))
    padding = -1 if padding_idx is None else padding_idx
    _SUM[grid](dout, order, starts, dweight, padding, channels, ROWS, COLUMNS)
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
    """As `torch.nn.Embedding.forward`, for calls that `supports_embedding_forward`."""
    return _Embedding.apply(module.weight, input, module.padding_idx)


def supports_embedding_forward(module: nn.Embedding, input: Tensor) -> bool:
    """Whether a call is for ours: one with a gradient of a whole weight, and no special option."""
    weight = module.weight
    plain = module.max_norm is None and not (module.scale_grad_by_freq or module.sparse)
    learns = torch.is_grad_enabled() and weight.requires_grad and input.numel() > 0
    return plain and learns and weight.is_cuda and not isinstance(weight, DTensor)
