"""What RWKV-7 computes within heads after its operator, in one pass each way.

(norm(o) + (r . k r_k) v) g (2503.14456). Arithmetic is in fp32, results are rounded once. Shapes: M
tokens, H heads of V channels.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flame_accel.kernels.fused.row_tiles import rows_of_tile
from flame_accel.kernels.fused.rwkv7_tiles import BACKWARD_WARPS, split_rows_of_head


@triton.jit(do_not_specialize=["M"])
def _finish_forward_kernel(
    o,
    r,
    key,
    value,
    g,
    weight,
    bias,
    r_k,
    out,
    eps,
    M,
    H: tl.constexpr,
    V: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * V + tl.arange(0, V)
    inside = (rows < M)[:, None] & (channels >= 0)[None, :]
    places = rows[:, None] * (H * V) + channels[None, :]
    b_o = tl.load(o + places, mask=inside, other=0.0).to(tl.float32)
    b_centered = b_o - (tl.sum(b_o, axis=1) / V)[:, None]
    b_rstd = 1 / tl.sqrt(tl.sum(b_centered * b_centered, axis=1) / V + eps)
    b_weight = tl.load(weight + channels).to(tl.float32)[None, :]
    b_sum = b_centered * b_rstd[:, None] * b_weight
    b_sum += tl.load(bias + channels).to(tl.float32)[None, :]
    b_r = tl.load(r + places, mask=inside, other=0.0).to(tl.float32)
    b_key = tl.load(key + places, mask=inside, other=0.0).to(tl.float32)
    b_bonus = b_r * b_key * tl.load(r_k + channels).to(tl.float32)[None, :]
    b_value = tl.load(value + places, mask=inside, other=0.0).to(tl.float32)
    b_sum += tl.sum(b_bonus, axis=1)[:, None] * b_value
    b_out = b_sum * tl.load(g + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, b_out.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "tiles"])
def _finish_backward_kernel(
    o,
    r,
    key,
    value,
    g,
    weight,
    bias,
    r_k,
    dout,
    out,
    do,
    dr,
    dkey,
    dvalue,
    dg,
    dweight,
    dbias,
    dr_k,
    eps,
    M,
    tiles,
    H: tl.constexpr,
    V: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * V + tl.arange(0, V)
    b_weight = tl.load(weight + channels).to(tl.float32)[None, :]
    b_bias = tl.load(bias + channels).to(tl.float32)[None, :]
    b_r_k = tl.load(r_k + channels).to(tl.float32)[None, :]
    b_dweight = tl.zeros((ROWS, V), dtype=tl.float32)
    b_dbias = tl.zeros((ROWS, V), dtype=tl.float32)
    b_dr_k = tl.zeros((ROWS, V), dtype=tl.float32)
    for tile in range(tiles):
        rows = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < M)[:, None] & (channels >= 0)[None, :]
        places = rows[:, None] * (H * V) + channels[None, :]
        b_o = tl.load(o + places, mask=inside, other=0.0).to(tl.float32)
        b_centered = b_o - (tl.sum(b_o, axis=1) / V)[:, None]
        b_rstd = 1 / tl.sqrt(tl.sum(b_centered * b_centered, axis=1) / V + eps)[:, None]
        b_normed = b_centered * b_rstd
        b_r = tl.load(r + places, mask=inside, other=0.0).to(tl.float32)
        b_key = tl.load(key + places, mask=inside, other=0.0).to(tl.float32)
        b_value = tl.load(value + places, mask=inside, other=0.0).to(tl.float32)
        b_score = tl.sum(b_r * b_key * b_r_k, axis=1)[:, None]
        b_sum = b_normed * b_weight + b_bias + b_score * b_value
        b_g = tl.load(g + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + places, (b_sum * b_g).to(out.dtype.element_ty), mask=inside)
        b_dout = tl.load(dout + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(dg + places, (b_dout * b_sum).to(dg.dtype.element_ty), mask=inside)
        b_dsum = b_dout * b_g
        tl.store(dvalue + places, (b_dsum * b_score).to(dvalue.dtype.element_ty), mask=inside)
        b_dscore = tl.sum(b_dsum * b_value, axis=1)[:, None]
        b_dr = b_dscore * b_key * b_r_k
        tl.store(dr + places, b_dr.to(dr.dtype.element_ty), mask=inside)
        b_dkey = b_dscore * b_r * b_r_k
        tl.store(dkey + places, b_dkey.to(dkey.dtype.element_ty), mask=inside)
        b_dr_k += b_dscore * b_r * b_key
        b_dweight += b_dsum * b_normed
        b_dbias += b_dsum
        b_dnormed = b_dsum * b_weight
        b_mean = (tl.sum(b_dnormed, axis=1) / V)[:, None]
        b_projected = (tl.sum(b_dnormed * b_normed, axis=1) / V)[:, None]
        b_do = b_rstd * (b_dnormed - b_mean - b_normed * b_projected)
        tl.store(do + places, b_do.to(do.dtype.element_ty), mask=inside)
    partial = program * (H * V) + channels
    tl.store(dweight + partial, tl.sum(b_dweight, axis=0))
    tl.store(dbias + partial, tl.sum(b_dbias, axis=0))
    tl.store(dr_k + partial, tl.sum(b_dr_k, axis=0))


# launches have options that are no parameters
_FINISH_FORWARD: Any = _finish_forward_kernel
_FINISH_BACKWARD: Any = _finish_backward_kernel


class HeadOutputs(NamedTuple):
    """What the output of a layer's heads is computed from, or the gradients; activations [M, H V].

    Contiguous.
    """

    o: Tensor
    """Of the operator."""
    r: Tensor
    key: Tensor
    value: Tensor
    g: Tensor
    weight: Tensor
    """Of the norm [H V]."""
    bias: Tensor
    """Of the norm [H V]."""
    r_k: Tensor
    """[H, V]."""


def finish_heads(outputs: HeadOutputs, eps: float) -> Tensor:
    """(norm(o) + (r . k r_k) v) g [M, H V]."""
    out = torch.empty_like(outputs.o)
    m = len(out)
    heads, width = outputs.r_k.shape
    rows = rows_of_tile(width)
    _FINISH_FORWARD[(-(-m // rows), heads)](*outputs, out, eps, m, heads, width, rows)
    return out


class GradientsAndResult(NamedTuple):
    """What `finish_gradients` computes."""

    gradients: HeadOutputs
    out: Tensor
    """The result of `finish_heads` again."""


def finish_gradients(outputs: HeadOutputs, eps: float, dout: Tensor) -> GradientsAndResult:
    """Gradients of `finish_heads`, from that of its result, contiguous."""
    o = outputs.o
    m, n = o.shape
    heads, width = outputs.r_k.shape
    out, do, dr, dkey, dvalue, dg = (torch.empty_like(o) for _ in range(6))
    programs, tiles = split_rows_of_head(m, n, width)
    partials = torch.empty(3, programs, n, dtype=torch.float32, device=o.device)
    _FINISH_BACKWARD[(programs, heads)](
        *outputs, dout, out, do, dr, dkey, dvalue, dg, *partials, eps,
        m, tiles, heads, width, rows_of_tile(width), num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    dweight, dbias, dr_k = partials.sum(1)
    gradients = HeadOutputs(do, dr, dkey, dvalue, dg, dweight, dbias, dr_k.view(heads, width))
    return GradientsAndResult(gradients, out)
