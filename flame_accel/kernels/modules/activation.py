"""Activations and gated linear units in PyTorch under fla's names; outputs in the input's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """Returns 1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def logsigmoid(x: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns log(sigmoid(x)) / temperature."""
    return (F.logsigmoid(x.float()) / temperature).to(x.dtype)


def swish(x: Tensor) -> Tensor:
    """Returns x * sigmoid(x)."""
    return F.silu(x)


def identity(x: Tensor) -> Tensor:
    """Returns x, where fla would round it to what flash-attn takes."""
    return x


def sqrelu(x: Tensor) -> Tensor:
    """Returns max(x, 0)^2."""
    return F.relu(x).square()


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def bias_gelu(y: Tensor, bias: Tensor) -> Tensor:
    """Returns `gelu` of y + bias."""
    return gelu(y + bias).to(y.dtype)


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    """Returns x * sigmoid(x) * y."""
    return F.silu(x) * y


def swiglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`swiglu`, then a linear map."""
    return F.linear(swiglu(x, y), weight, bias)


def sigmoidglu(x: Tensor, y: Tensor) -> Tensor:
    """Returns sigmoid(x) * y."""
    return torch.sigmoid(x) * y


def sigmoidglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`sigmoidglu`, then a linear map."""
    return F.linear(sigmoidglu(x, y), weight, bias)


def powglu(x: Tensor, y: Tensor, power: float = 3.0) -> Tensor:
    """The power linear unit of x, times y (arXiv 2605.25704).

    It is x^(power / (sqrt(x) + 1)) * sigmoid(x) for x > 0 and x * sigmoid(x) elsewhere.
    """
    total = x.float()
    positive = torch.where(total > 0, total, 1.0)
    grown = torch.exp(power / (positive.sqrt() + 1) * positive.log())
    gate = torch.where(total > 0, grown, total) * torch.sigmoid(total)
    return (gate * y.float()).to(x.dtype)


def powglu_linear(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, power: float = 3.0
) -> Tensor:
    """`powglu`, then a linear map."""
    return F.linear(powglu(x, y, power), weight, bias)
