"""Matrix products and softmax in PyTorch under fla's names, in its dtypes; no layer calls them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@torch.no_grad()
def matmul(a: Tensor, b: Tensor, activation: str = "") -> Tensor:
    """activation(a @ b) in the dtype of `a`, from `a` [.., M, K] and `b` [K, N]; no gradient."""
    if activation not in ACTIVATIONS:
        raise UserError(f"matmul has the activations {[*ACTIVATIONS]}, not {activation!r}")
    return ACTIVATIONS[activation](a.float() @ b.float()).to(a.dtype)


@torch.no_grad()
def addmm(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    alpha: Tensor | float | None = None,
    beta: Tensor | float | None = None,
) -> Tensor:
    """Beta x + alpha a @ b in the dtype of `a`; `x` is [N] or [M, N]; no gradient."""
    product = a.float() @ b.float() * (1.0 if alpha is None else alpha)
    return (product + x.float() * (1.0 if beta is None else beta)).to(a.dtype)


@torch.no_grad()
def softmax_fwd(x: Tensor, dtype: torch.dtype | None = torch.float) -> Tensor:
    """Softmax over the last dimension, in fp32 inside."""
    return x.float().softmax(-1).to(dtype or x.dtype)


@torch.no_grad()
def softmax_bwd(p: Tensor, dp: Tensor, dtype: torch.dtype | None = torch.float) -> Tensor:
    """The gradient of a softmax's input from its output `p` and the gradient `dp` of that."""
    weighted = p.float() * dp.float()
    return (weighted - p.float() * weighted.sum(-1, keepdim=True)).to(dtype or p.dtype)


@torch.no_grad()
def logsumexp_fwd(
    x: Tensor, scale: float | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Log sum exp(scale x) over the last dimension; fp32 if `dtype` is None."""
    total = x.float() if scale is None else x.float() * scale
    return total.logsumexp(-1).to(dtype or torch.float32)


def sinkhorn(logits: Tensor, num_iters: int = 20) -> Tensor:
    """exp(logits) [..., N, N] in fp32, its columns and rows divided by their sums in turn.

    (Sinkhorn and Knopp, 1967.) In logarithms, so that nothing overflows.
    """
    x = logits.float()
    for _ in range(num_iters):
        x = x - x.logsumexp(-2, keepdim=True)
        x = x - x.logsumexp(-1, keepdim=True)
    return x.exp()
