"""Normalisation in PyTorch under fla's names: RMS, layer, group, gated and L2 norms.

Statistics are in fp32 whatever the input; outputs have the dtype of the input.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

OutputOrOutputAndResidual = Tensor | tuple[Tensor, Tensor]


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> OutputOrOutputAndResidual:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension; fla's layer norm too.

    With `is_rms_norm` there is no mean: x / sqrt(mean(x^2) + eps). Each of `num_groups` equal
    shares of the last dimension has statistics of its own. With a residual, x + residual is
    normalised; with `prenorm`, that sum is returned too, in the dtype of the residual (or fp32 if
    `residual_in_fp32` and there is none).
    """
    total, next_residual = _add_residual_in_fp32(x, residual, residual_in_fp32)
    y = _normalize(total, weight, bias, eps, is_rms_norm, num_groups).to(x.dtype)
    return (y, next_residual) if prenorm else y


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> OutputOrOutputAndResidual:
    """`group_norm` with `is_rms_norm`, over the whole last dimension."""
    return group_norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm=True)


def layer_norm_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> OutputOrOutputAndResidual:
    """`group_norm`, then a linear map."""
    y, next_residual = group_norm(
        x, norm_weight, norm_bias, residual, eps, True, residual_in_fp32, is_rms_norm, num_groups
    )
    out = F.linear(y, linear_weight, linear_bias)
    return (out, next_residual) if prenorm else out


def layer_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
    *,
    is_rms_norm: bool = False,
) -> OutputOrOutputAndResidual:
    """A layer or RMS norm times the activation (swish, silu, sigmoid) of `g`, shaped like `x`.

    Residuals as in `group_norm`.
    """
    total, next_residual = _add_residual_in_fp32(x, residual, residual_in_fp32)
    gate = torch.sigmoid(g.float()) if activation == "sigmoid" else F.silu(g.float())
    y = (_normalize(total, weight, bias, eps, is_rms_norm, 1) * gate).to(x.dtype)
    return (y, next_residual) if prenorm else y


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
) -> OutputOrOutputAndResidual:
    """`layer_norm_gated` with `is_rms_norm`."""
    return layer_norm_gated(
        x, g, weight, bias, activation, residual, prenorm, residual_in_fp32, eps, is_rms_norm=True
    )


def layer_norm_swish_gate_linear(
    x: Tensor,
    g: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
    *,
    is_rms_norm: bool = False,
) -> OutputOrOutputAndResidual:
    """`layer_norm_gated` by swish, then a linear map."""
    y, next_residual = layer_norm_gated(
        x, g, norm_weight, norm_bias, "swish", residual, True, residual_in_fp32, eps,
        is_rms_norm=is_rms_norm,
    )  # fmt: skip
    out = F.linear(y, linear_weight, linear_bias)
    return (out, next_residual) if prenorm else out


# a partial is bound to fla's signature call by call; the frequent norms above are called directly
rms_norm_swish_gate_linear = partial(layer_norm_swish_gate_linear, is_rms_norm=True)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Layer norm in groups of `group_size` channels, silu(z) as a factor after or before it."""
    total = x.float()
    gate = None if z is None else F.silu(z.float())
    if gate is not None and not norm_before_gate:
        total = total * gate
    num_groups = 1 if group_size is None else x.shape[-1] // group_size
    y = _normalize(total, weight, bias, eps, is_rms_norm, num_groups)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


rmsnorm_fn = partial(layernorm_fn, is_rms_norm=True)


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    """Returns x / sqrt(sum(x^2) + eps) over the last dimension, in `output_dtype` or that of x."""
    total = x.float()
    y = total * torch.rsqrt(total.square().sum(-1, keepdim=True) + eps)
    return y.to(x.dtype if output_dtype is None else output_dtype)


class _ResidualSum(NamedTuple):
    fp32: Tensor
    """For the norm."""
    next_residual: Tensor
    """In the dtype that it is kept in for the next block."""


def _add_residual_in_fp32(
    x: Tensor, residual: Tensor | None, residual_in_fp32: bool
) -> _ResidualSum:
    """The sum of both; of `x` alone if there is no residual."""
    if residual is not None:
        total = x.float() + residual.float()
        return _ResidualSum(total, total.to(residual.dtype))
    total = x.float()
    return _ResidualSum(total, total if residual_in_fp32 else x)


def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    is_rms_norm: bool,
    num_groups: int,
) -> Tensor:
    """fp32 in and out; `weight` and `bias` cover all groups."""
    weight, bias = (None if p is None else p.float() for p in (weight, bias))
    if num_groups > 1:
        y = _normalize(x.unflatten(-1, (num_groups, -1)), None, None, eps, is_rms_norm, 1)
        y = y.flatten(-2)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias
    if not is_rms_norm:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = _RMSNorm.apply(x, weight, eps)
    return y if bias is None else y + bias


class _RMSNorm(torch.autograd.Function):
    """y = x * rstd * weight, in few passes over memory, which are what a norm costs on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        y = x * rstd
        return y if weight is None else y.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        dy, width = grads[0], x.shape[-1]
        products = dy * x
        dweight = None
        if weight is None:
            dx = dy * rstd
        else:
            dweight = rstd.reshape(-1) @ products.reshape(-1, width)
            products.mul_(weight)
            dx = (dy * weight).mul_(rstd)
        # dx = rstd * (dy * w - x * rstd^2 * mean(dy * w * x))
        along = rstd.pow(3).mul_(products.sum(-1, keepdim=True)).div_(-width)
        return dx.addcmul_(x, along), dweight, None
