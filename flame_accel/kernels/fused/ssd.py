"""The state space operator of Mamba2, keeping no more than its inputs for the backward pass.

    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T,    y_t = S_t^T C_t

(2405.21060), dt = softplus(steps + bias), A = -exp(A_log): linear attention with C as queries, B as
keys and dt x as values. B and C are not repeated over the heads of a group, and dt x and the decays
are computed again in the backward pass. Chunks are fla's, and so are the kernels within them; the
states between them are in `ssd_states`.

Shapes: B batch, T tokens, H heads, G groups, K width of B and C, V width of a head.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from fla.ops import utils
from fla.ops.common import chunk_o
from torch import Tensor

from flame_accel.kernels.fused.ssd_states import (
    CHUNK,
    Sequences,
    compute_state_gradients_after_chunks,
    compute_states_before_chunks,
)

TILE = 2048
"""Elements that a program works on."""
LOG2_E = 1.4426950408889634


@triton.jit
def _softplus(x):
    b_exp = tl.exp(tl.minimum(x, 20.0))
    # log(1 + e) without the loss of what 1 + e rounds away
    b_sum = 1 + b_exp
    b_log = tl.where(b_sum == 1.0, b_exp, tl.log(b_sum) * (b_exp / (b_sum - 1)))
    return tl.where(x > 20.0, x, b_log)


@triton.jit(do_not_specialize=["M"])
def _scale_forward_kernel(
    x,
    steps,
    bias,
    a_log,
    v,
    decays,
    M,
    x_stride,
    steps_stride,
    low,
    high,
    H: tl.constexpr,
    V: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    values = tl.arange(0, V)
    present = rows < M
    b_steps = tl.load(steps + rows * steps_stride + head, mask=present, other=0.0).to(tl.float32)
    b_dt = _softplus(b_steps + tl.load(bias + head).to(tl.float32))
    b_dt = tl.minimum(tl.maximum(b_dt, low), high)
    b_a = -tl.exp(tl.load(a_log + head).to(tl.float32))
    tl.store(decays + rows * H + head, b_a * b_dt, mask=present)
    b_x = tl.load(
        x + rows[:, None] * x_stride + head * V + values[None, :], mask=present[:, None], other=0.0
    ).to(tl.float32)
    b_v = (b_x * b_dt[:, None]).to(v.dtype.element_ty)
    tl.store(v + (rows[:, None] * H + head) * V + values[None, :], b_v, mask=present[:, None])


@triton.jit(do_not_specialize=["M"])
def _scale_backward_kernel(
    x,
    steps,
    bias,
    a_log,
    skip,
    dv,
    dy,
    ddecays,
    dx,
    dsteps,
    da_log,
    M,
    x_stride,
    steps_stride,
    dx_stride,
    low,
    high,
    H: tl.constexpr,
    V: tl.constexpr,
    ROWS: tl.constexpr,
    SKIP_PER_CHANNEL: tl.constexpr,
):
    head = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    values = tl.arange(0, V)
    present = rows < M
    b_steps = tl.load(steps + rows * steps_stride + head, mask=present, other=0.0).to(tl.float32)
    b_steps += tl.load(bias + head).to(tl.float32)
    b_unbounded = _softplus(b_steps)
    b_dt = tl.minimum(tl.maximum(b_unbounded, low), high)
    b_a = -tl.exp(tl.load(a_log + head).to(tl.float32))
    places = (rows[:, None] * H + head) * V + values[None, :]
    b_dv = tl.load(dv + places, mask=present[:, None], other=0.0).to(tl.float32)
    b_dy = tl.load(dy + places, mask=present[:, None], other=0.0).to(tl.float32)
    b_x = tl.load(
        x + rows[:, None] * x_stride + head * V + values[None, :], mask=present[:, None], other=0.0
    ).to(tl.float32)
    if SKIP_PER_CHANNEL:
        b_skip = tl.load(skip + head * V + values).to(tl.float32)[None, :]
    else:
        b_skip = tl.load(skip + head).to(tl.float32)
    b_dx = b_dv * b_dt[:, None] + b_dy * b_skip
    tl.store(
        dx + rows[:, None] * dx_stride + head * V + values[None, :],
        b_dx.to(dx.dtype.element_ty),
        mask=present[:, None],
    )
    b_ddecays = tl.load(ddecays + rows * H + head, mask=present, other=0.0).to(tl.float32)
    b_ddt = tl.sum(b_dv * b_x, axis=1) + b_a * b_ddecays
    bounded = (b_unbounded >= low) & (b_unbounded <= high)
    b_dsteps = tl.where(bounded, b_ddt / (1 + tl.exp(-b_steps)), 0.0)
    tl.store(dsteps + rows * H + head, b_dsteps, mask=present)
    # the decay is A dt, and dA / dA_log = A
    tl.store(da_log + rows * H + head, b_ddecays * b_dt * b_a, mask=present)


# looked up at each call, since `boundaries_on_host` replaces some; decorators hide their types
_UTILS: Any = utils
_CHUNK_O: Any = chunk_o
# launches have options that are no parameters
_SCALE_FORWARD: Any = _scale_forward_kernel
_SCALE_BACKWARD: Any = _scale_backward_kernel


class StepSizes(NamedTuple):
    """What step sizes and decays are computed from."""

    steps: Tensor
    """Before bias and softplus [B, T, H]; rows may lie apart."""
    bias: Tensor
    """[H]."""
    a_log: Tensor
    """[H]."""
    low: float
    """Bounds of the step sizes."""
    high: float


class _ScaledInput(NamedTuple):
    """x times the step sizes, and the sums of log decays within chunks."""

    v: Tensor
    """[B, T, H, V]."""
    g: Tensor
    """To the base 2 [B, T, H], fp32."""


class SSDInput(NamedTuple):
    """Views of the output of Mamba2's convolution."""

    x: Tensor
    """[B, T, H, V], rows apart."""
    k: Tensor
    """B [B, T, G, K], contiguous."""
    q: Tensor
    """C [B, T, G, K], contiguous."""


def split_xbc_into_x_view_and_bc_copies(
    xbc: Tensor, heads: int, head_width: int, groups: int
) -> SSDInput:
    """Cuts x, B and C out of the output of the convolution [B, T, H V + 2 G K], contiguous."""
    inner = heads * head_width
    k, q = xbc[..., inner:].unflatten(-1, (2, groups, -1)).unbind(2)
    x = xbc[..., :inner].unflatten(-1, (heads, head_width))
    return SSDInput(x, k.contiguous(), q.contiguous())


def _scale_input_and_sum_decays(x: Tensor, sizes: StepSizes, sequences: Sequences) -> _ScaledInput:
    batch, tokens, heads, width = x.shape
    v = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    decays = torch.empty(batch, tokens, heads, dtype=torch.float32, device=x.device)
    rows = max(1, TILE // width)
    count = batch * tokens
    _SCALE_FORWARD[(-(-count // rows), heads)](
        x, sizes.steps, sizes.bias, sizes.a_log, v, decays, count, x.stride(1),
        sizes.steps.stride(1), sizes.low, sizes.high, heads, width, rows,
    )  # fmt: skip
    g = _UTILS.chunk_local_cumsum(
        decays, chunk_size=CHUNK, scale=LOG2_E,
        cu_seqlens=sequences.boundaries, chunk_indices=sequences.chunk_indices,
    )  # fmt: skip
    return _ScaledInput(v, g)


def compute_ssd(inputs: SSDInput, sizes: StepSizes, sequences: Sequences) -> Tensor:
    """Y [B, T, H, V], without a skip connection."""
    x, k, q = inputs
    v, g = _scale_input_and_sum_decays(x, sizes, sequences)
    states = compute_states_before_chunks(k, v, g, sequences)
    return _CHUNK_O.chunk_fwd_o(
        q=q, k=k, v=v, h=states, g=g, scale=1.0, state_v_first=True, chunk_size=CHUNK,
        cu_seqlens=sequences.boundaries, chunk_indices=sequences.chunk_indices,
    )  # fmt: skip


class XbcStepAndALogGradients(NamedTuple):
    """Gradients of what `compute_ssd` reads."""

    xbc: Tensor
    """[B, T, H V + 2 G K]."""
    steps: Tensor
    """[B, T, H], fp32."""
    a_log: Tensor
    """[H]."""


def compute_ssd_gradients(
    inputs: SSDInput, sizes: StepSizes, sequences: Sequences, dy: Tensor, skip: Tensor
) -> XbcStepAndALogGradients:
    """Gradients of y = `compute_ssd` + skip x.

    Args:
        inputs: As for `compute_ssd`.
        sizes: As for `compute_ssd`.
        sequences: As for `compute_ssd`.
        dy: Gradient of y [B, T, H, V], contiguous.
        skip: Factor of x, of each head [H] or channel [H, V].
    """
    x, k, q = inputs
    boundaries, indices = sequences
    v, g = _scale_input_and_sum_decays(x, sizes, sequences)
    chunks = {
        "scale": 1.0, "state_v_first": True, "chunk_size": CHUNK,
        "cu_seqlens": boundaries, "chunk_indices": indices,
    }  # fmt: skip
    dstates = compute_state_gradients_after_chunks(q, dy, g, sequences)
    states = compute_states_before_chunks(k, v, g, sequences)
    dq, dk, _, dg = _CHUNK_O.chunk_bwd_dqkwg(
        q=q, k=k, v=v, g=g, do=dy, h=states, dh=dstates, **chunks
    )
    del states
    dv = _CHUNK_O.chunk_bwd_dv(q=q, k=k, g=g, do=dy, dh=dstates, **chunks)
    del dstates
    ddecays = _UTILS.chunk_local_cumsum(
        dg, chunk_size=CHUNK, reverse=True, cu_seqlens=boundaries, chunk_indices=indices
    )
    batch, tokens, heads, width = x.shape
    groups, channels = k.shape[2:]
    bc = groups * channels
    dxbc = torch.empty(batch, tokens, heads * width + 2 * bc, dtype=x.dtype, device=x.device)
    dxbc[..., -2 * bc : -bc] = dk.flatten(2)
    dxbc[..., -bc:] = dq.flatten(2)
    dsteps, da_log = torch.empty_like(g), torch.empty_like(g)
    rows = max(1, TILE // width)
    count = batch * tokens
    _SCALE_BACKWARD[(-(-count // rows), heads)](
        x, sizes.steps, sizes.bias, sizes.a_log, skip, dv, dy, ddecays, dxbc, dsteps, da_log,
        count, x.stride(1), sizes.steps.stride(1), dxbc.stride(1), sizes.low, sizes.high,
        heads, width, rows, SKIP_PER_CHANNEL=skip.numel() > heads,
    )  # fmt: skip
    return XbcStepAndALogGradients(dxbc, dsteps, da_log.sum((0, 1)))
