"""RMS norm and layer norm, with a residual sum before or a gate after: one pass each way.

y = x / sqrt(mean(x^2) + eps) * weight, times act(gate) where there is a gate (1910.07467); a layer
norm (1607.06450) takes the mean of x off first, and may add a bias. Sums and statistics are in
fp32. Shapes: M rows of N channels.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flame_accel.kernels.fused.row_tiles import (
    num_warps_for,
    split_rows_among_programs,
    tile_of_whole_rows,
)

LARGEST_WIDTH = 8192
"""Channels of the widest rows; a program holds whole rows in its registers."""
BACKWARD_PROGRAMS = 1024
"""Programs of a backward pass, each with a part of the weight's gradient. The same on every GPU."""


@triton.jit(do_not_specialize=["M"])
def _norm_forward_kernel(
    x,
    residual,
    gate,
    weight,
    bias,
    y,
    total,
    rstd,
    eps,
    M,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    KEEPS_TOTAL: tl.constexpr,
    CENTERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    places = rows[:, None] * N + columns[None, :]
    b_x = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        b_x += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    if KEEPS_TOTAL:
        tl.store(total + places, b_x.to(total.dtype.element_ty), mask=inside)
    if CENTERS:
        b_x = tl.where(inside, b_x - (tl.sum(b_x, axis=1) / N)[:, None], 0.0)
    b_rstd = 1 / tl.sqrt(tl.sum(b_x * b_x, axis=1) / N + eps)
    tl.store(rstd + rows, b_rstd, mask=rows < M)
    b_y = b_x * b_rstd[:, None]
    if HAS_WEIGHT:
        b_y *= tl.load(weight + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        b_y += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if GATE != "none":
        b_gate = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
        b_sigmoid = 1 / (1 + tl.exp(-b_gate))
        b_y *= b_sigmoid if GATE == "sigmoid" else b_gate * b_sigmoid
    tl.store(y + places, b_y.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "tiles"])
def _norm_backward_kernel(
    x,
    gate,
    weight,
    rstd,
    dy,
    dtotal,
    dx,
    dresidual,
    dgate,
    dweight,
    dbias,
    M,
    tiles,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_DTOTAL: tl.constexpr,
    HAS_DRESIDUAL: tl.constexpr,
    CENTERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    b_dweight = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    b_dbias = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    b_weight = tl.full((1, WIDTH), 1.0, dtype=tl.float32)
    if HAS_WEIGHT:
        b_weight = tl.load(weight + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    for tile in range(tiles):
        rows = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        places = rows[:, None] * N + columns[None, :]
        b_dy = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)
        b_x = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        if CENTERS:
            b_x = tl.where(inside, b_x - (tl.sum(b_x, axis=1) / N)[:, None], 0.0)
        b_rstd = tl.load(rstd + rows, mask=rows < M, other=0.0)[:, None]
        b_normed = b_x * b_rstd
        if GATE != "none":
            b_gate = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
            b_sigmoid = 1 / (1 + tl.exp(-b_gate))
            b_y = b_normed * b_weight
            if GATE == "sigmoid":
                b_dgate = b_dy * b_y * b_sigmoid * (1 - b_sigmoid)
                b_dy *= b_sigmoid
            else:
                b_dgate = b_dy * b_y * b_sigmoid * (1 + b_gate * (1 - b_sigmoid))
                b_dy *= b_gate * b_sigmoid
            tl.store(dgate + places, b_dgate.to(dgate.dtype.element_ty), mask=inside)
        if HAS_BIAS:
            b_dbias += b_dy
        if HAS_WEIGHT:
            b_dweight += b_dy * b_normed
            b_dy *= b_weight
        b_projected = tl.sum(b_dy * b_normed, axis=1) / N
        if CENTERS:
            b_dy -= (tl.sum(b_dy, axis=1) / N)[:, None]
        b_dx = (b_dy - b_normed * b_projected[:, None]) * b_rstd
        if HAS_DTOTAL:
            b_dx += tl.load(dtotal + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + places, b_dx.to(dx.dtype.element_ty), mask=inside)
        if HAS_DRESIDUAL:
            tl.store(dresidual + places, b_dx.to(dresidual.dtype.element_ty), mask=inside)
    if HAS_WEIGHT:
        b_sum = tl.sum(b_dweight, axis=0)
        tl.store(dweight + program * N + columns, b_sum, mask=columns < N)
    if HAS_BIAS:
        b_sum = tl.sum(b_dbias, axis=0)
        tl.store(dbias + program * N + columns, b_sum, mask=columns < N)


# launches have options that are no parameters
_FORWARD: Any = _norm_forward_kernel
_BACKWARD: Any = _norm_backward_kernel


class _Norm(torch.autograd.Function):
    """Tensors [M, N], contiguous; returns y and, with `keeps_total`, x + residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        gate: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        centers: bool,
        activation: str,
        total_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        (m, n), y = x.shape, torch.empty_like(x)
        # what the backward pass needs is the sum, which is x itself without a residual
        keeps_total = residual is not None or total_dtype not in (None, x.dtype)
        total = torch.empty_like(x, dtype=total_dtype or x.dtype) if keeps_total else x
        rstd = torch.empty(m, dtype=torch.float32, device=x.device)
        width, rows = tile_of_whole_rows(n)
        _FORWARD[(-(-m // rows),)](
            x, residual, gate, weight, bias, y, total, rstd, eps, m, n, width, rows,
            HAS_RESIDUAL=residual is not None, KEEPS_TOTAL=keeps_total, CENTERS=centers,
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, GATE=activation,
            num_warps=num_warps_for(width * rows),
        )  # fmt: skip
        ctx.save_for_backward(total, gate, weight, bias, rstd)
        ctx.activation, ctx.centers, ctx.x_dtype = activation, centers, x.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        if total_dtype is None:
            return y, None
        # an input must not be returned as it is
        return y, total if keeps_total else total.view_as(total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, gate, weight, bias, rstd = ctx.saved_tensors
        dy, dtotal = grads
        if dy is None:
            dy = torch.zeros_like(total, dtype=ctx.x_dtype)
        m, n = total.shape
        dx = torch.empty_like(total, dtype=ctx.x_dtype)
        dresidual = None
        if ctx.residual_dtype not in (None, ctx.x_dtype):
            dresidual = torch.empty_like(total, dtype=ctx.residual_dtype)
        dgate = None if gate is None else torch.empty_like(gate)
        width, rows = tile_of_whole_rows(n)
        programs, tiles = split_rows_among_programs(m, rows, BACKWARD_PROGRAMS)
        partials: list[Tensor | None] = [
            None if p is None else torch.empty(programs, n, dtype=torch.float32, device=p.device)
            for p in (weight, bias)
        ]
        _BACKWARD[(programs,)](
            total, gate, weight, rstd, dy.contiguous(),
            None if dtotal is None else dtotal.contiguous(),
            dx, dresidual, dgate, *partials, m, tiles, n, width, rows,
            HAS_DTOTAL=dtotal is not None, HAS_DRESIDUAL=dresidual is not None,
            CENTERS=ctx.centers, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            GATE=ctx.activation, num_warps=num_warps_for(width * rows),
        )  # fmt: skip
        dweight, dbias = (
            None if p is None or partial is None else partial.sum(0).to(p.dtype)
            for p, partial in zip((weight, bias), partials, strict=True)
        )
        if ctx.residual_dtype == ctx.x_dtype:
            dresidual = dx
        return dx, dresidual, dgate, dweight, dbias, None, None, None, None


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `kernels.modules.norm.group_norm` of one group, if `supports_norm_of_limited_width`."""
    if residual is not None:
        total_dtype = residual.dtype
    else:
        total_dtype = torch.float32 if residual_in_fp32 else x.dtype
    y, total = _Norm.apply(
        _contiguous_rows(x), None if residual is None else _contiguous_rows(residual), None,
        weight, bias, eps, not is_rms_norm, "none",
        total_dtype if prenorm or residual is not None else None,
    )  # fmt: skip
    y = y.view(x.shape)
    return (y, total.view(x.shape)) if prenorm else y


rms_norm = partial(layer_norm, is_rms_norm=True)
"""As `kernels.modules.norm.rms_norm`, if `supports_norm_of_limited_width`."""


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """As `kernels.modules.norm.rms_norm_gated`, if `supports_rms_norm_gated_options`."""
    name = "sigmoid" if activation == "sigmoid" else "swish"
    rows, gates = _contiguous_rows(x), _contiguous_rows(g)
    y, _ = _Norm.apply(rows, None, gates, weight, bias, eps, False, name, None)
    return y.view(x.shape)


def _contiguous_rows(x: Tensor) -> Tensor:
    return x.contiguous().view(-1, x.shape[-1])


def supports_norm_of_limited_width(x: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether a call is for our kernel: rows that fit into registers."""
    return 0 < x.shape[-1] <= LARGEST_WIDTH and x.numel() > 0


def supports_rms_norm_gated_options(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    *args: Any,
    **kwargs: Any,
) -> bool:
    """As `supports_norm_of_limited_width`, without a residual."""
    plain = residual is None and not prenorm and g.shape == x.shape
    return (
        plain
        and bias is None
        and activation in ("swish", "silu", "sigmoid")
        and supports_norm_of_limited_width(x)
    )
