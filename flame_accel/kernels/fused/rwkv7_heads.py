"""What RWKV-7 computes within heads before and after its operator, in one pass each.

Before: w = c sigmoid(w'), a = sigmoid(a'), v = v' + (v_1 - v') sigmoid(mix'),
kappa = k' k_k / |k' k_k|, k = k' (1 + (a - 1) k_a), and the operator's inputs -kappa and kappa a.
After: (norm(o) + (r . k r_k) v) g (2503.14456). Arithmetic is in fp32, results are rounded once.
Shapes: M tokens, H heads of V channels.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Elements that a program works on at a time."""
BACKWARD_PROGRAMS = 2048
"""Programs of a backward pass, each with a part of the weights' gradients."""
BACKWARD_WARPS = 8
"""With four, a thread of a backward pass holds over 200 registers."""
LOG_DECAY = tl.constexpr(-0.6065306597126334)
"""The lowest log decay, -exp(-1/2)."""
NORM_EPS = tl.constexpr(1e-6)
"""Under the root of the norm of keys, as in fla."""


@triton.jit(do_not_specialize=["M"])
def _prepare_forward_kernel(
    k,
    v,
    v_first,
    w_raw,
    a_raw,
    mix_raw,
    k_k,
    k_a,
    w,
    key,
    value,
    erase,
    write,
    M,
    H: tl.constexpr,
    V: tl.constexpr,
    ROWS: tl.constexpr,
    MIXES_VALUES: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * V + tl.arange(0, V)
    inside = (rows < M)[:, None] & (channels >= 0)[None, :]
    places = rows[:, None] * (H * V) + channels[None, :]
    b_k = tl.load(k + places, mask=inside, other=0.0).to(tl.float32)
    b_a = 1 / (1 + tl.exp(-tl.load(a_raw + places, mask=inside, other=0.0).to(tl.float32)))
    b_w = LOG_DECAY / (1 + tl.exp(-tl.load(w_raw + places, mask=inside, other=0.0).to(tl.float32)))
    tl.store(w + places, b_w.to(w.dtype.element_ty), mask=inside)
    b_u = b_k * tl.load(k_k + channels).to(tl.float32)[None, :]
    b_kappa = b_u / tl.sqrt(tl.sum(b_u * b_u, axis=1) + NORM_EPS)[:, None]
    tl.store(erase + places, (-b_kappa).to(erase.dtype.element_ty), mask=inside)
    tl.store(write + places, (b_kappa * b_a).to(write.dtype.element_ty), mask=inside)
    b_key = b_k * (1 + (b_a - 1) * tl.load(k_a + channels).to(tl.float32)[None, :])
    tl.store(key + places, b_key.to(key.dtype.element_ty), mask=inside)
    if MIXES_VALUES:
        b_v = tl.load(v + places, mask=inside, other=0.0).to(tl.float32)
        b_first = tl.load(v_first + places, mask=inside, other=0.0).to(tl.float32)
        b_raw = tl.load(mix_raw + places, mask=inside, other=0.0).to(tl.float32)
        b_value = b_v + (b_first - b_v) / (1 + tl.exp(-b_raw))
        tl.store(value + places, b_value.to(value.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "tiles"])
def _prepare_backward_kernel(
    k,
    v,
    v_first,
    w_raw,
    a_raw,
    mix_raw,
    k_k,
    k_a,
    dw,
    dkey,
    dkey_after,
    dvalue,
    dvalue_after,
    derase,
    dwrite,
    dk,
    dv,
    dv_first,
    dw_raw,
    da_raw,
    dmix_raw,
    dk_k,
    dk_a,
    M,
    tiles,
    H: tl.constexpr,
    V: tl.constexpr,
    ROWS: tl.constexpr,
    MIXES_VALUES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * V + tl.arange(0, V)
    b_k_k = tl.load(k_k + channels).to(tl.float32)[None, :]
    b_k_a = tl.load(k_a + channels).to(tl.float32)[None, :]
    b_dk_k = tl.zeros((ROWS, V), dtype=tl.float32)
    b_dk_a = tl.zeros((ROWS, V), dtype=tl.float32)
    for tile in range(tiles):
        rows = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < M)[:, None] & (channels >= 0)[None, :]
        places = rows[:, None] * (H * V) + channels[None, :]
        b_w = 1 / (1 + tl.exp(-tl.load(w_raw + places, mask=inside, other=0.0).to(tl.float32)))
        b_dw = tl.load(dw + places, mask=inside, other=0.0).to(tl.float32)
        b_dw *= LOG_DECAY * b_w * (1 - b_w)
        tl.store(dw_raw + places, b_dw.to(dw_raw.dtype.element_ty), mask=inside)

        b_dvalue = tl.load(dvalue + places, mask=inside, other=0.0).to(tl.float32)
        b_dvalue += tl.load(dvalue_after + places, mask=inside, other=0.0).to(tl.float32)
        if MIXES_VALUES:
            b_v = tl.load(v + places, mask=inside, other=0.0).to(tl.float32)
            b_first = tl.load(v_first + places, mask=inside, other=0.0).to(tl.float32)
            b_raw = tl.load(mix_raw + places, mask=inside, other=0.0).to(tl.float32)
            b_mix = 1 / (1 + tl.exp(-b_raw))
            b_dmix = b_dvalue * (b_first - b_v) * b_mix * (1 - b_mix)
            tl.store(dmix_raw + places, b_dmix.to(dmix_raw.dtype.element_ty), mask=inside)
            b_dfirst = (b_dvalue * b_mix).to(dv_first.dtype.element_ty)
            tl.store(dv_first + places, b_dfirst, mask=inside)
            b_dvalue *= 1 - b_mix
        tl.store(dv + places, b_dvalue.to(dv.dtype.element_ty), mask=inside)

        b_k = tl.load(k + places, mask=inside, other=0.0).to(tl.float32)
        b_a = 1 / (1 + tl.exp(-tl.load(a_raw + places, mask=inside, other=0.0).to(tl.float32)))
        b_u = b_k * b_k_k
        b_rnorm = 1 / tl.sqrt(tl.sum(b_u * b_u, axis=1) + NORM_EPS)[:, None]
        b_kappa = b_u * b_rnorm
        b_dwrite = tl.load(dwrite + places, mask=inside, other=0.0).to(tl.float32)
        b_dkappa = b_dwrite * b_a - tl.load(derase + places, mask=inside, other=0.0).to(tl.float32)
        b_dkey = tl.load(dkey + places, mask=inside, other=0.0).to(tl.float32)
        b_dkey += tl.load(dkey_after + places, mask=inside, other=0.0).to(tl.float32)
        b_da = (b_dwrite * b_kappa + b_dkey * b_k * b_k_a) * b_a * (1 - b_a)
        tl.store(da_raw + places, b_da.to(da_raw.dtype.element_ty), mask=inside)
        b_du = b_rnorm * (b_dkappa - b_kappa * tl.sum(b_kappa * b_dkappa, axis=1)[:, None])
        b_dk = b_du * b_k_k + b_dkey * (1 + (b_a - 1) * b_k_a)
        tl.store(dk + places, b_dk.to(dk.dtype.element_ty), mask=inside)
        b_dk_k += b_du * b_k
        b_dk_a += b_dkey * b_k * (b_a - 1)
    tl.store(dk_k + program * (H * V) + channels, tl.sum(b_dk_k, axis=0))
    tl.store(dk_a + program * (H * V) + channels, tl.sum(b_dk_a, axis=0))


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
_PREPARE_FORWARD: Any = _prepare_forward_kernel
_PREPARE_BACKWARD: Any = _prepare_backward_kernel
_FINISH_FORWARD: Any = _finish_forward_kernel
_FINISH_BACKWARD: Any = _finish_backward_kernel


class HeadInputs(NamedTuple):
    """What the operator's inputs are computed from; activations [M, H V], contiguous."""

    k: Tensor
    v: Tensor
    v_first: Tensor | None
    """Values of the first layer; None in that layer."""
    w_raw: Tensor
    a_raw: Tensor
    mix_raw: Tensor | None
    """Of values with those of the first layer."""
    k_k: Tensor
    """[H V]."""
    k_a: Tensor
    """[H V]."""
    head_width: int


class OperatorInputs(NamedTuple):
    """Inputs of the operator [M, H V], or their gradients."""

    w: Tensor
    """Log decays."""
    key: Tensor
    value: Tensor
    erase: Tensor
    """-kappa."""
    write: Tensor
    """kappa a."""


def prepare_operator_inputs(inputs: HeadInputs) -> OperatorInputs:
    """All inputs of the operator but the queries."""
    k = inputs.k
    found = [torch.empty_like(k) for _ in OperatorInputs._fields]
    mixes = inputs.v_first is not None
    if not mixes:
        found[2] = inputs.v
    m, n = k.shape
    width = inputs.head_width
    rows = max(1, TILE // width)
    _PREPARE_FORWARD[(-(-m // rows), n // width)](
        *inputs[:-1], *found, m, n // width, width, rows, MIXES_VALUES=mixes
    )
    return OperatorInputs(*found)


class HeadInputGradients(NamedTuple):
    """Gradients of `HeadInputs`."""

    k: Tensor
    v: Tensor
    v_first: Tensor | None
    w_raw: Tensor
    a_raw: Tensor
    mix_raw: Tensor | None
    k_k: Tensor
    k_a: Tensor


def operator_input_gradients(
    inputs: HeadInputs, grads: OperatorInputs, dkey_after: Tensor, dvalue_after: Tensor
) -> HeadInputGradients:
    """Gradients of `prepare_operator_inputs`.

    Args:
        inputs: As there.
        grads: From the operator; contiguous.
        dkey_after: What else keys get, from `finish_gradients`.
        dvalue_after: What else values get.
    """
    k = inputs.k
    m, n = k.shape
    width = inputs.head_width
    mixes = inputs.v_first is not None
    dk, dv, dw_raw, da_raw = (torch.empty_like(k) for _ in range(4))
    dv_first, dmix_raw = (torch.empty_like(k) if mixes else None for _ in range(2))
    split = _split_into_programs(m, n, width)
    partials = torch.empty(2, split.programs, n, dtype=torch.float32, device=k.device)
    _PREPARE_BACKWARD[(split.programs, n // width)](
        *inputs[:-1], grads.w, grads.key, dkey_after, grads.value, dvalue_after, grads.erase,
        grads.write, dk, dv, dv_first, dw_raw, da_raw, dmix_raw, partials[0], partials[1],
        m, split.tiles, n // width, width, split.rows, MIXES_VALUES=mixes,
        num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    dk_k, dk_a = partials.sum(1)
    return HeadInputGradients(dk, dv, dv_first, dw_raw, da_raw, dmix_raw, dk_k, dk_a)


class HeadOutputs(NamedTuple):
    """What the output of a layer's heads is computed from; activations [M, H V], contiguous."""

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
    eps: float


def finish_heads(outputs: HeadOutputs) -> Tensor:
    """(norm(o) + (r . k r_k) v) g [M, H V]."""
    out = torch.empty_like(outputs.o)
    m = len(out)
    heads, width = outputs.r_k.shape
    rows = max(1, TILE // width)
    _FINISH_FORWARD[(-(-m // rows), heads)](*outputs[:-1], out, outputs.eps, m, heads, width, rows)
    return out


class HeadOutputGradients(NamedTuple):
    """Gradients of `HeadOutputs`, and the result again."""

    o: Tensor
    r: Tensor
    key: Tensor
    value: Tensor
    g: Tensor
    weight: Tensor
    bias: Tensor
    r_k: Tensor
    out: Tensor


def finish_gradients(outputs: HeadOutputs, dout: Tensor) -> HeadOutputGradients:
    """Gradients of `finish_heads`, from that of its result, contiguous."""
    o = outputs.o
    m, n = o.shape
    heads, width = outputs.r_k.shape
    out, do, dr, dkey, dvalue, dg = (torch.empty_like(o) for _ in range(6))
    split = _split_into_programs(m, n, width)
    partials = torch.empty(3, split.programs, n, dtype=torch.float32, device=o.device)
    _FINISH_BACKWARD[(split.programs, heads)](
        *outputs[:-1], dout, out, do, dr, dkey, dvalue, dg, *partials, outputs.eps,
        m, split.tiles, heads, width, split.rows, num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    dweight, dbias, dr_k = partials.sum(1)
    return HeadOutputGradients(
        do, dr, dkey, dvalue, dg, dweight, dbias, dr_k.view(heads, width), out
    )


class _Split(NamedTuple):
    """How rows are shared among the programs of a head."""

    programs: int
    tiles: int
    rows: int


def _split_into_programs(m: int, n: int, head_width: int) -> _Split:
    rows = max(1, TILE // head_width)
    num_tiles = -(-m // rows)
    tiles = -(-num_tiles // max(1, BACKWARD_PROGRAMS * head_width // n))
    return _Split(-(-num_tiles // tiles), tiles, rows)
