"""SwiGLU, x * sigmoid(x) * y (2002.05202), and the linear map that follows it in a feed-forward.

The product of both is not kept for the backward pass, which computes it again on the way.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Elements of a program, 16 for each thread."""


# specialized in `size`: a mask that is known to be aligned leaves loads 16 bytes wide
@triton.jit
def _swiglu_forward_kernel(x, y, z, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    b_x = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    b_y = tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
    b_z = b_x / (1 + tl.exp(-b_x)) * b_y
    tl.store(z + places, b_z.to(z.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_kernel(x, y, dz, dx, dy, z, size, BLOCK: tl.constexpr, HAS_Z: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    b_x = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    b_y = tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
    b_dz = tl.load(dz + places, mask=inside, other=0.0).to(tl.float32)
    b_sigmoid = 1 / (1 + tl.exp(-b_x))
    b_swish = b_x * b_sigmoid
    b_dx = b_dz * b_y * (b_sigmoid + b_swish * (1 - b_sigmoid))
    tl.store(dx + places, b_dx.to(dx.dtype.element_ty), mask=inside)
    tl.store(dy + places, (b_dz * b_swish).to(dy.dtype.element_ty), mask=inside)
    if HAS_Z:
        tl.store(z + places, (b_swish * b_y).to(z.dtype.element_ty), mask=inside)


# launches have options that are no parameters
_FORWARD: Any = _swiglu_forward_kernel
_BACKWARD: Any = _swiglu_backward_kernel


def _compute_swiglu(x: Tensor, y: Tensor) -> Tensor:
    z = torch.empty_like(x)
    _FORWARD[(-(-x.numel() // BLOCK),)](x, y, z, x.numel(), BLOCK)
    return z


class SwiGLUGradients(NamedTuple):
    """Gradients of both factors, and what a linear map after them needs for its own."""

    dx: Tensor
    dy: Tensor
    product: Tensor | None
    """The forward pass's result, computed again if asked for."""


def _compute_swiglu_gradients(
    x: Tensor, y: Tensor, dz: Tensor, *, with_product: bool
) -> SwiGLUGradients:
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    z = torch.empty_like(x) if with_product else None
    grid = (-(-x.numel() // BLOCK),)
    _BACKWARD[grid](x, y, dz, dx, dy, z, x.numel(), BLOCK, HAS_Z=with_product)
    return SwiGLUGradients(dx, dy, z)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        ctx.save_for_backward(x, y)
        return _compute_swiglu(x, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        dx, dy, _ = _compute_swiglu_gradients(x, y, grads[0].contiguous(), with_product=False)
        return dx, dy


class _SwiGLULinear(torch.autograd.Function):
    """All tensors of one dtype, autocast off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        ctx.save_for_backward(x, y, weight)
        return F.linear(_compute_swiglu(x, y), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight = ctx.saved_tensors
        dout = grads[0].reshape(-1, weight.shape[0])
        dz = (dout @ weight).view(x.shape)
        dx, dy, z = _compute_swiglu_gradients(x, y, dz, with_product=ctx.needs_input_grad[2])
        dweight = None if z is None else dout.t() @ z.view(-1, weight.shape[1])
        dbias = dout.sum(0) if ctx.needs_input_grad[3] else None
        return dx, dy, dweight, dbias


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    """As `kernels.modules.activation.swiglu`, if `supports_swiglu_same_shape_and_dtype`."""
    return _SwiGLU.apply(x, y)


def swiglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `kernels.modules.activation.swiglu_linear`, if `supports_swiglu_same_shape_and_dtype`."""
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        x, y, weight = x.to(dtype), y.to(dtype), weight.to(dtype)
        return _SwiGLULinear.apply(x, y, weight, None if bias is None else bias.to(dtype))


def supports_swiglu_same_shape_and_dtype(x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether a call is for our kernel: both of one shape and dtype, and not empty."""
    return x.shape == y.shape and x.dtype == y.dtype and x.numel() > 0
