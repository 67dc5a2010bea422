"""Norm, 8 bit activations and ternary weights in one linear map, under fla's names.

Rounding has no gradient of its own: that of a rounded value goes to the value (Ma et al., arXiv
2402.17764). Other norms are in `norm`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.modules.norm import OutputOrOutputAndResidual, group_norm


def layer_norm_linear_quant(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> OutputOrOutputAndResidual:
    """quant(norm(x + residual)) @ ternary(weight)^T + bias; with `prenorm`, the sum as well.

    Activations are rounded to 255 levels per token, weights to {-1, 0, 1} times their mean size.

    Args:
        x: [..., D].
        norm_weight: [D].
        norm_bias: [D].
        linear_weight: [O, D].
        linear_bias: [O].
        residual: [..., D].
        eps: Epsilon of the norm.
        prenorm: see above.
        residual_in_fp32: dtype of the sum where there is no residual.
        is_rms_norm: a norm without a mean.
    """
    y, kept = group_norm(
        x.float(), norm_weight, norm_bias, residual, eps, True, residual_in_fp32, is_rms_norm
    )
    out = F.linear(
        _fake_quantize_activations_to_int8(y).to(x.dtype),
        _fake_quantize_weights_to_ternary(linear_weight),
        linear_bias,
    )
    if residual is None and not residual_in_fp32:
        kept = kept.to(x.dtype)
    return (out, kept) if prenorm else out


def _fake_quantize_activations_to_int8(x: Tensor) -> Tensor:
    """To -128..127 times the largest of a token over 127, halves away from zero."""
    with torch.no_grad():
        step = x.abs().amax(-1, keepdim=True).clamp_min_(1e-5).div_(127.0)
        scaled = x / step
        rounded = (scaled.abs() + 0.5).floor_().copysign_(scaled).clamp_(-128, 127).mul_(step)
    return _StraightThrough.apply(x, rounded)


def _fake_quantize_weights_to_ternary(weight: Tensor) -> Tensor:
    with torch.no_grad():
        size = weight.abs().mean().clamp_min_(1e-5)
        rounded = (weight / size).round_().clamp_(-1, 1).mul_(size)
    return _StraightThrough.apply(weight, rounded)


class _StraightThrough(torch.autograd.Function):
    """The rounded values, with the gradient of the exact ones."""

    @staticmethod
    def forward(ctx: object, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
