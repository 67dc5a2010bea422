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

from flame_accel.kernels.fused.norm import BACKWARD_PROGRAMS, _num_warps, _tile_shape


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


@triton.jit(do_not_specialize=["M", "tokens"])
def _mix_backward_kernel(
    x,
    starts,
    mus,
    dmixes,
    dx,
    dmus,
    M,
    tokens,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    MIXES: tl.constexpr,
    MIXES_PADDED: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    present = columns < N
    numbers = tl.arange(0, MIXES_PADDED)
    inside = (numbers < MIXES)[:, None] & present[None, :]
    b_mus = tl.load(mus + numbers[:, None] * N + columns[None, :], mask=inside, other=0.0)
    b_mus = b_mus.to(tl.float32)
    places = numbers[:, None].to(tl.int64) * M * N + columns[None, :]
    b_dmus = tl.zeros((MIXES_PADDED, WIDTH), dtype=tl.float32)
    # what the token after the last one of this program sends back
    after = (program + 1) * tokens
    follows = (after < M) & (tl.load(starts + after, mask=after < M, other=1) == 0)
    b_next = tl.load(dmixes + places + after * N, mask=inside & follows, other=0.0)
    b_back = tl.sum(b_next.to(tl.float32) * b_mus, axis=0)
    for step in range(tokens):
        row = after - 1 - step
        valid = row < M
        begins = tl.load(starts + row, mask=valid, other=1) != 0
        b_x = tl.load(x + row * N + columns, mask=present & valid, other=0.0).to(tl.float32)
        before = present & valid & (begins == 0)
        b_before = tl.load(x + (row - 1) * N + columns, mask=before, other=0.0).to(tl.float32)
        b_dmix = tl.load(dmixes + places + row * N, mask=inside & valid, other=0.0)
        b_dmix = b_dmix.to(tl.float32)
        b_dmus += b_dmix * (b_before - b_x)[None, :]
        b_sent = tl.sum(b_dmix * b_mus, axis=0)
        b_dx = tl.sum(b_dmix, axis=0) - b_sent + b_back
        tl.store(dx + row * N + columns, b_dx.to(dx.dtype.element_ty), mask=present & valid)
        b_back = tl.where(begins, 0.0, b_sent)
    tl.store(
        dmus + (program * MIXES + numbers[:, None]) * N + columns[None, :], b_dmus, mask=inside
    )


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
    width, rows = _tile_shape(n)
    _MIX_FORWARD[(-(-m // rows),)](
        x, starts, mus, mixes, m, n, width, rows, number, num_warps=_num_warps(width * rows)
    )
    return mixes


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class MixGradients(NamedTuple):
    """Gradients of what is mixed."""

    x: Tensor
    mus: Tensor


def mix_gradients(x: Tensor, starts: Tensor, mus: Tensor, dmixes: Tensor) -> MixGradients:
    """Gradients of `mix_with_previous_token`, from those of the mixes [I, M, N], contiguous."""
    number, n = mus.shape
    m = x.numel() // n
    dx = torch.empty_like(x)
    tokens = -(-m // BACKWARD_PROGRAMS)
    programs = -(-m // tokens)
    padded = _next_power_of_two(number)
    dmus = torch.empty(programs, number, n, dtype=torch.float32, device=x.device)
    width = _next_power_of_two(n)
    _MIX_BACKWARD[(programs,)](
        x, starts, mus, dmixes, dx, dmus, m, tokens, n, width, number, padded,
        num_warps=_num_warps(width * padded),
    )  # fmt: skip
    return MixGradients(dx, dmus.sum(0).to(mus.dtype))
