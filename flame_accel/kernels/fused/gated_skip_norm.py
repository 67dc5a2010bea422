"""What follows the state space operator of Mamba2: skip connection, gate and RMS norm in one pass.

    z = (y + skip x) silu(gate),    result = z / sqrt(mean(z^2) + eps) * weight

(2405.21060, 1910.07467), unlike `norm`, whose gate comes after the norm. Statistics are in fp32.
Shapes: M rows of N channels; x and the gate may be parts of wider rows.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flame_accel.kernels.fused.norm import BACKWARD_PROGRAMS
from flame_accel.kernels.fused.row_tiles import (
    num_warps_for,
    split_rows_among_programs,
    tile_of_whole_rows,
)


@triton.jit(do_not_specialize=["M"])
def _forward_kernel(
    y,
    x,
    gate,
    skip,
    weight,
    result,
    rstd,
    eps,
    M,
    x_stride,
    gate_stride,
    N: tl.constexpr,
    PER_SKIP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    b_skip = tl.load(skip + columns // PER_SKIP, mask=columns < N, other=0.0).to(tl.float32)[
        None, :
    ]
    gates = gate + rows[:, None] * gate_stride + columns[None, :]
    b_gate = tl.load(gates, mask=inside, other=0.0)
    b_gate = b_gate.to(tl.float32)
    b_x = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    b_x = b_x.to(tl.float32)
    b_y = tl.load(y + rows[:, None] * N + columns[None, :], mask=inside, other=0.0)
    b_sum = b_y.to(tl.float32) + b_skip * b_x
    b_z = b_sum * b_gate / (1 + tl.exp(-b_gate))
    b_rstd = 1 / tl.sqrt(tl.sum(b_z * b_z, axis=1) / N + eps)
    tl.store(rstd + rows, b_rstd, mask=rows < M)
    b_weight = tl.load(weight + columns, mask=columns < N, other=0.0).to(tl.float32)
    b_result = b_z * b_rstd[:, None] * b_weight[None, :]
    places = result + rows[:, None] * N + columns[None, :]
    tl.store(places, b_result.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "tiles"])
def _backward_kernel(
    y,
    x,
    gate,
    skip,
    weight,
    rstd,
    dresult,
    dy,
    dgate,
    result,
    dweight,
    dskip,
    M,
    tiles,
    x_stride,
    gate_stride,
    dgate_stride,
    N: tl.constexpr,
    PER_SKIP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESULT: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    b_dweight = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    b_dskip = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    b_weight = tl.load(weight + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    b_skip = tl.load(skip + columns // PER_SKIP, mask=columns < N, other=0.0).to(tl.float32)[
        None, :
    ]
    for tile in range(tiles):
        rows = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        places = rows[:, None] * N + columns[None, :]
        b_gate = tl.load(
            gate + rows[:, None] * gate_stride + columns[None, :], mask=inside, other=0.0
        )
        b_gate = b_gate.to(tl.float32)
        b_x = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
        b_x = b_x.to(tl.float32)
        b_y = tl.load(y + rows[:, None] * N + columns[None, :], mask=inside, other=0.0)
        b_sum = b_y.to(tl.float32) + b_skip * b_x
        b_rstd = tl.load(rstd + rows, mask=rows < M, other=0.0)[:, None]
        b_dresult = tl.load(dresult + places, mask=inside, other=0.0).to(tl.float32)
        b_sigmoid = 1 / (1 + tl.exp(-b_gate))
        b_swish = b_gate * b_sigmoid
        b_normed = b_sum * b_swish * b_rstd
        if HAS_RESULT:
            b_result = (b_normed * b_weight).to(result.dtype.element_ty)
            tl.store(result + places, b_result, mask=inside)
        b_dweight += b_dresult * b_normed
        b_dresult *= b_weight
        b_mean = tl.sum(b_dresult * b_normed, axis=1) / N
        b_dz = (b_dresult - b_normed * b_mean[:, None]) * b_rstd
        b_dgate = b_dz * b_sum * (b_sigmoid + b_swish * (1 - b_sigmoid))
        dgates = dgate + rows[:, None] * dgate_stride + columns[None, :]
        tl.store(dgates, b_dgate.to(dgate.dtype.element_ty), mask=inside)
        b_dsum = b_dz * b_swish
        tl.store(dy + places, b_dsum.to(dy.dtype.element_ty), mask=inside)
        b_dskip += b_dsum * b_x
    partial = program * N + columns
    tl.store(dweight + partial, tl.sum(b_dweight, axis=0), mask=columns < N)
    tl.store(dskip + partial, tl.sum(b_dskip, axis=0), mask=columns < N)


# launches have options that are no parameters
_FORWARD: Any = _forward_kernel
_BACKWARD: Any = _backward_kernel


class GatedSum(NamedTuple):
    """What is normed: (y + skip x) silu(gate)."""

    y: Tensor
    """[..., N], contiguous."""
    x: Tensor
    """[..., N]; rows may lie apart."""
    gate: Tensor
    """[..., N]; rows may lie apart."""
    skip: Tensor
    """Factors of x, of N channels or of fewer heads; contiguous."""


class NormedSum(NamedTuple):
    """The result, and what its backward pass needs."""

    result: Tensor
    """[..., N]."""
    rstd: Tensor
    """[M]."""


def norm_gated_sum(gated: GatedSum, weight: Tensor, eps: float) -> NormedSum:
    """Skip connection, gate and norm.

    Args:
        gated: What to norm.
        weight: [N].
        eps: Added to the mean of squares.
    """
    y, x, gate, skip = gated
    n = y.shape[-1]
    m = y.numel() // n
    result = torch.empty_like(y)
    rstd = torch.empty(m, dtype=torch.float32, device=y.device)
    width, rows = tile_of_whole_rows(n)
    _FORWARD[(-(-m // rows),)](
        y, x, gate, skip, weight, result, rstd, eps, m, x.stride(-2), gate.stride(-2),
        n, n // skip.numel(), width, rows, num_warps=num_warps_for(width * rows),
    )  # fmt: skip
    return NormedSum(result, rstd)


class GatedSumGradients(NamedTuple):
    """Gradients of what `norm_gated_sum` reads but the gate; that of x is skip times that of y."""

    y: Tensor
    weight: Tensor
    skip: Tensor
    result: Tensor | None
    """The result, computed again if asked for."""


def norm_gated_sum_gradients_except_x(
    gated: GatedSum,
    weight: Tensor,
    rstd: Tensor,
    dresult: Tensor,
    out_dgate: Tensor,
    *,
    with_result: bool,
) -> GatedSumGradients:
    """Gradients of `norm_gated_sum`; that of the gate is written to a tensor that is given.

    Args:
        gated: As there.
        weight: As there.
        rstd: As it returned.
        dresult: Gradient of the result [..., N], contiguous.
        out_dgate: [..., N], written; rows may lie apart.
        with_result: Whether to compute the result again.
    """
    y, x, gate, skip = gated
    n = y.shape[-1]
    m = y.numel() // n
    width, rows = tile_of_whole_rows(n)
    programs, tiles = split_rows_among_programs(m, rows, BACKWARD_PROGRAMS)
    dy = torch.empty_like(y)
    result = torch.empty_like(y) if with_result else None
    partials = torch.empty(2, programs, n, dtype=torch.float32, device=y.device)
    _BACKWARD[(programs,)](
        y, x, gate, skip, weight, rstd, dresult, dy, out_dgate, result, partials[0], partials[1],
        m, tiles, x.stride(-2), gate.stride(-2), out_dgate.stride(-2), n, n // skip.numel(),
        width, rows,
        HAS_RESULT=with_result, num_warps=num_warps_for(2 * width * rows),
    )  # fmt: skip
    dweight, dskip = partials.sum(1)
    dskip = dskip.view(skip.numel(), -1).sum(1)
    return GatedSumGradients(
        dy, dweight.to(weight.dtype), dskip.view(skip.shape).to(skip.dtype), result
    )
