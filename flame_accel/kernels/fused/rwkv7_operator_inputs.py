"""What RWKV-7 computes within heads before its operator, in one pass each way.

w = c sigmoid(w'), a = sigmoid(a'), v = v' + (v_1 - v') sigmoid(mix'),
kappa = k' k_k / |k' k_k|, k = k' (1 + (a - 1) k_a), and the operator's inputs -kappa and kappa a
(2503.14456). Arithmetic is in fp32, results are rounded once. Shapes: M tokens, H heads of V
channels.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flame_accel.kernels.fused.row_tiles import rows_of_tile
from flame_accel.kernels.fused.rwkv7_tiles import BACKWARD_WARPS, split_rows_of_head

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


# launches have options that are no parameters
_PREPARE_FORWARD: Any = _prepare_forward_kernel
_PREPARE_BACKWARD: Any = _prepare_backward_kernel


class HeadInputs(NamedTuple):
    """What the operator's inputs are computed from, or the gradients; activations [M, H V].

    Contiguous.
    """

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


def prepare_operator_inputs(inputs: HeadInputs, head_width: int) -> OperatorInputs:
    """All inputs of the operator but the queries."""
    k = inputs.k
    found = [torch.empty_like(k) for _ in OperatorInputs._fields]
    mixes = inputs.v_first is not None
    if not mixes:
        found[2] = inputs.v
    m, n = k.shape
    heads, rows = n // head_width, rows_of_tile(head_width)
    _PREPARE_FORWARD[(-(-m // rows), heads)](
        *inputs, *found, m, heads, head_width, rows, MIXES_VALUES=mixes
    )
    return OperatorInputs(*found)


def operator_input_gradients(
    inputs: HeadInputs,
    head_width: int,
    grads: OperatorInputs,
    dkey_after: Tensor,
    dvalue_after: Tensor,
) -> HeadInputs:
    """Gradients of `prepare_operator_inputs`.

    Args:
        inputs: As there.
        head_width: As there.
        grads: From the operator; contiguous.
        dkey_after: What else keys get, from `finish_gradients`.
        dvalue_after: What else values get.
    """
    k = inputs.k
    m, n = k.shape
    heads, rows = n // head_width, rows_of_tile(head_width)
    mixes = inputs.v_first is not None
    dk, dv, dw_raw, da_raw = (torch.empty_like(k) for _ in range(4))
    dv_first, dmix_raw = (torch.empty_like(k) if mixes else None for _ in range(2))
    programs, tiles = split_rows_of_head(m, n, head_width)
    partials = torch.empty(2, programs, n, dtype=torch.float32, device=k.device)
    _PREPARE_BACKWARD[(programs, heads)](
        *inputs, grads.w, grads.key, dkey_after, grads.value, dvalue_after, grads.erase,
        grads.write, dk, dv, dv_first, dw_raw, da_raw, dmix_raw, partials[0], partials[1],
        m, tiles, heads, head_width, rows, MIXES_VALUES=mixes, num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    dk_k, dk_a = partials.sum(1)
    return HeadInputs(dk, dv, dv_first, dw_raw, da_raw, dmix_raw, dk_k, dk_a)
