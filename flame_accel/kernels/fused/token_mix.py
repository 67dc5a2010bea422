"""Inputs of RWKV's projections: each channel of a token moved towards the token before it.

    mix_i[t] = x[t] + mu_i (x[t - 1] - x[t]),    x[-1] = 0 at the start of a document

(2503.14456). All mixes of a layer are made in one pass from x, so that x alone has to be kept.
Shapes: M tokens of N channels, I mixes.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flame_accel.kernels.fused.row_tiles import num_warps_for, tile_of_whole_rows

BACKWARD_ROWS = 64
"""Tokens of a program of the backward pass, which has its own part of the gradients of mu."""
BACKWARD_COLUMNS = 64
"""Its channels."""
BACKWARD_WARPS = 8
"""16 elements for each thread, which holds 104 registers with six mixes, not 168."""


@triton.jit(do_not_specialize=["M"])
def _mix_forward_kernel(
    x,
    starts,
    mus,
    mixes,
    M,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    MIXES: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    places = rows[:, None] * N + columns[None, :]
    b_start = tl.load(starts + rows, mask=rows < M, other=1)
    b_x = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    b_before = tl.load(x + places - N, mask=inside & (b_start == 0)[:, None], other=0.0)
    b_delta = b_before.to(tl.float32) - b_x
    for i in range(MIXES):
        b_mu = tl.load(mus + i * N + columns, mask=columns < N, other=0.0).to(tl.float32)
        b_mix = (b_x + b_delta * b_mu[None, :]).to(mixes.dtype.element_ty)
        tl.store(mixes + places, b_mix, mask=inside)
        # all mixes together may have more than 2^31 elements
        places += tl.cast(M, tl.int64) * N


@triton.jit(do_not_specialize=["M"])
def _mix_backward_kernel(
    x,
    starts,
    mus,
    dmixes,
    dx,
    dmus,
    M,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MIXES: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    rows = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    places = rows[:, None] * N + columns[None, :]
    b_start = tl.load(starts + rows, mask=rows < M, other=1)
    # the token after the last one belongs to no document
    b_next_start = tl.load(starts + rows + 1, mask=rows + 1 < M, other=1)
    follows = inside & (b_next_start == 0)[:, None]
    b_x = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    b_before = tl.load(x + places - N, mask=inside & (b_start == 0)[:, None], other=0.0)
    b_delta = b_before.to(tl.float32) - b_x
    b_dx = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for i in range(MIXES):
        b_mu = tl.load(mus + i * N + columns, mask=columns < N, other=0.0).to(tl.float32)
        b_dmix = tl.load(dmixes + places, mask=inside, other=0.0).to(tl.float32)
        # what the next token sends back; its row is in the cache
        b_next = tl.load(dmixes + places + N, mask=follows, other=0.0).to(tl.float32)
        b_dx += b_dmix + (b_next - b_dmix) * b_mu[None, :]
        partial = dmus + (tile * MIXES + i) * N + columns
        tl.store(partial, tl.sum(b_dmix * b_delta, axis=0), mask=columns < N)
        places += tl.cast(M, tl.int64) * N
    places = rows[:, None] * N + columns[None, :]
    tl.store(dx + places, b_dx.to(dx.dtype.element_ty), mask=inside)


# launches have options that are no parameters
_MIX_FORWARD: Any = _mix_forward_kernel
_MIX_BACKWARD: Any = _mix_backward_kernel


def mark_document_starts_as_int8(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """1 for each first token of a document, else 0 [M], 8 bits each; the host waits for nothing.

    Args:
        x: [B, T, N].
        cu_seqlens: Boundaries of documents of a packed batch (then B = 1), the last one T.
    """
    batch, tokens = x.shape[:2]
    if cu_seqlens is None:
        starts = torch.zeros(batch, tokens, dtype=torch.int8, device=x.device)
        starts[:, 0] = 1
        return starts.view(-1)
    starts = torch.zeros(tokens + 1, dtype=torch.int8, device=x.device)
    # empty documents at the end begin after the last token
    return starts.index_fill_(0, cu_seqlens.long(), 1)[:-1]


def mix_with_previous_token(x: Tensor, starts: Tensor, mus: Tensor) -> Tensor:
    """All mixes [I, M, N].

    Args:
        x: [B, T, N], contiguous.
        starts: As of `mark_document_starts_as_int8`.
        mus: [I, N].
    """
    number, n = mus.shape
    m = x.numel() // n
    mixes = torch.empty(number, m, n, dtype=x.dtype, device=x.device)
    width, rows = tile_of_whole_rows(n)
    _MIX_FORWARD[(-(-m // rows),)](
        x, starts, mus, mixes, m, n, width, rows, number, num_warps=num_warps_for(width * rows)
    )
    return mixes


class MixGradients(NamedTuple):
    """Gradients of what is mixed."""

    x: Tensor
    mus: Tensor


def mix_gradients(x: Tensor, starts: Tensor, mus: Tensor, dmixes: Tensor) -> MixGradients:
    """Gradients of `mix_with_previous_token`, from those of the mixes [I, M, N], contiguous."""
    number, n = mus.shape
    m = x.numel() // n
    dx = torch.empty_like(x)
    tiles = -(-m // BACKWARD_ROWS)
    dmus = torch.empty(tiles, number, n, dtype=torch.float32, device=x.device)
    _MIX_BACKWARD[(tiles, -(-n // BACKWARD_COLUMNS))](
        x, starts, mus, dmixes, dx, dmus, m, n, BACKWARD_ROWS, BACKWARD_COLUMNS, number,
        num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    return MixGradients(dx, dmus.sum(0).to(mus.dtype))
