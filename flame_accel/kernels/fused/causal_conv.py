"""Convolution of each channel with its last four tokens, then SiLU, as before Mamba2's operator.

    z[t] = bias + sum_j weight[3 - j] x[t - j],    y[t] = z[t] sigmoid(z[t])

over the tokens of a document (2312.00752). The forward kernel is fla's; the backward one reads each
input once and goes through the tokens in their order, with the last four in registers. Shapes: B
batch, T tokens, M = B T, N channels.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from fla.modules.causal_conv1d import ops
from torch import Tensor

from flame_accel.kernels.fused.ssd_states import Sequences

WINDOW = 4
"""Tokens that an output reads."""
SEGMENT = 64
"""Tokens that a row of a program goes through."""
SEGMENTS = 4
"""Such rows of a program, which has its own part of the weights' gradients."""
COLUMNS = 64
"""Channels of a program."""


@triton.jit
def _load_token(x, dy, starts, rows, begin, columns, M, x_stride, N: tl.constexpr):
    """Of each row: input and gradient of a token, and 0 where a document begins with it, else 1."""
    exists = (rows >= 0) & (rows < M)
    inside = exists[:, None] & (columns < N)[None, :]
    b_x = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    # gradients before the segment are for the programs before
    inside = inside & (rows >= begin)[:, None]
    b_dy = tl.load(dy + rows[:, None] * N + columns[None, :], mask=inside, other=0.0)
    b_start = tl.load(starts + rows, mask=exists, other=1)
    return b_x, b_dy, (b_start == 0).to(tl.float32)[:, None]


@triton.jit(do_not_specialize=["M"])
def _convolution_backward_kernel(
    x,
    dy,
    starts,
    weight,
    bias,
    dx,
    dweight,
    dbias,
    M,
    x_stride,
    dx_stride,
    N: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    begin = (program * SEGMENTS + tl.arange(0, SEGMENTS)) * SEGMENT
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    present = columns < N
    b_bias = tl.zeros((1, COLUMNS), dtype=tl.float32)
    if HAS_BIAS:
        b_bias += tl.load(bias + columns, mask=present, other=0.0).to(tl.float32)[None, :]
    # by distance to the token that is computed
    b_w0 = tl.load(weight + columns * 4 + 3, mask=present, other=0.0).to(tl.float32)[None, :]
    b_w1 = tl.load(weight + columns * 4 + 2, mask=present, other=0.0).to(tl.float32)[None, :]
    b_w2 = tl.load(weight + columns * 4 + 1, mask=present, other=0.0).to(tl.float32)[None, :]
    b_w3 = tl.load(weight + columns * 4, mask=present, other=0.0).to(tl.float32)[None, :]
    # Triton takes a variable that begins as the same value as its successor for one that stays as
    # it is, so each has zeros of its own
    b_x0 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_x1 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_x2 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dz0 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dz1 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dz2 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dw0 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dw1 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dw2 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_dw3 = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_db = tl.zeros((SEGMENTS, COLUMNS), dtype=tl.float32)
    b_joined0 = tl.zeros((SEGMENTS, 1), dtype=tl.float32)
    b_joined1 = tl.zeros((SEGMENTS, 1), dtype=tl.float32)
    # the three tokens before a segment are read for its outputs, those after for its gradients
    rows = begin - 3
    next_x, next_dy, next_joined = _load_token(x, dy, starts, rows, begin, columns, M, x_stride, N)
    for step in range(SEGMENT + 6):
        read_x, read_dy, joined = next_x, next_dy, next_joined
        # under way while this token is computed
        next_x, next_dy, next_joined = _load_token(
            x, dy, starts, rows + 1, begin, columns, M, x_stride, N
        )
        b_joined2, b_joined1, b_joined0 = b_joined1, b_joined0, joined
        b_x3, b_x2, b_x1 = b_x2 * joined, b_x1 * joined, b_x0 * joined
        b_x0 = read_x.to(tl.float32)
        b_z = b_bias + b_x0 * b_w0 + b_x1 * b_w1 + b_x2 * b_w2 + b_x3 * b_w3
        b_sigmoid = 1 / (1 + tl.exp(-b_z))
        b_dz3, b_dz2, b_dz1 = b_dz2, b_dz1, b_dz0
        b_dz0 = read_dy.to(tl.float32) * b_sigmoid * (1 + b_z * (1 - b_sigmoid))
        if step < SEGMENT + 3:
            b_dw0 += b_dz0 * b_x0
            b_dw1 += b_dz0 * b_x1
            b_dw2 += b_dz0 * b_x2
            b_dw3 += b_dz0 * b_x3
            b_db += b_dz0
        # of the token three before, from those up to the end of its document
        b_dx = b_dz1 * b_w2 + b_joined0 * (b_dz0 * b_w3)
        b_dx = b_dz3 * b_w0 + b_joined2 * (b_dz2 * b_w1 + b_joined1 * b_dx)
        written = (rows - 3 >= begin) & (rows - 3 < M)
        places = dx + (rows - 3)[:, None] * dx_stride + columns[None, :]
        b_dx = b_dx.to(dx.dtype.element_ty)
        tl.store(places, b_dx, mask=written[:, None] & present[None, :])
        rows += 1
    places = dweight + (program * N + columns) * 4
    tl.store(places + 3, tl.sum(b_dw0, axis=0), mask=present)
    tl.store(places + 2, tl.sum(b_dw1, axis=0), mask=present)
    tl.store(places + 1, tl.sum(b_dw2, axis=0), mask=present)
    tl.store(places, tl.sum(b_dw3, axis=0), mask=present)
    if HAS_BIAS:
        tl.store(dbias + program * N + columns, tl.sum(b_db, axis=0), mask=present)


_OPS: Any = ops
# launches have options that are no parameters
_BACKWARD: Any = _convolution_backward_kernel


class Convolution(NamedTuple):
    """What is convolved, and with what."""

    x: Tensor
    """[B, T, N]; rows may lie apart, evenly over the whole batch."""
    weight: Tensor
    """[N, 4], contiguous."""
    bias: Tensor | None
    """[N]."""


def convolve_with_silu(inputs: Convolution, sequences: Sequences) -> Tensor:
    """Y [B, T, N], contiguous."""
    y, _ = _OPS.causal_conv1d_fwd(
        x=inputs.x, weight=inputs.weight, bias=inputs.bias, residual=None, activation="silu",
        cu_seqlens=sequences.boundaries, chunk_indices=sequences.chunk_indices,
    )  # fmt: skip
    return y


class ConvolutionWeightGradients(NamedTuple):
    """Gradients of the weights of `convolve_with_silu`."""

    weight: Tensor
    bias: Tensor | None


def convolution_gradients(
    inputs: Convolution, starts: Tensor, dy: Tensor, dx: Tensor
) -> ConvolutionWeightGradients:
    """Gradients of `convolve_with_silu`; that of x is written to a tensor that is given.

    Args:
        inputs: As there.
        starts: As of `token_mix.mark_document_starts_as_int8`.
        dy: Gradient of y [B, T, N], contiguous.
        dx: [B, T, N], written; rows as of x.
    """
    x, weight, bias = inputs
    n = len(weight)
    m = dy.numel() // n
    programs = -(-m // (SEGMENT * SEGMENTS))
    dweight = torch.empty(programs, n, WINDOW, dtype=torch.float32, device=x.device)
    dbias = None
    if bias is not None:
        dbias = torch.empty(programs, n, dtype=torch.float32, device=x.device)
    _BACKWARD[(programs, -(-n // COLUMNS))](
        x, dy, starts, weight, bias, dx, dweight, dbias, m, x.stride(1), dx.stride(1),
        n, SEGMENT, SEGMENTS, COLUMNS, HAS_BIAS=bias is not None,
    )  # fmt: skip
    if bias is not None and dbias is not None:
        dbias = dbias.sum(0).to(bias.dtype)
    return ConvolutionWeightGradients(dweight.sum(0).to(weight.dtype), dbias)
