"""Attention over residual sources in PyTorch (Attention Residuals, arXiv 2603.15031)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_attnres(
    query: Tensor,
    residuals: Sequence[Tensor],
    rms_weight: Tensor,
    output_rms_weight: Tensor | None = None,
    rms_eps: float = 1e-6,
    scale: float = 1.0,
    return_weights: bool = False,
    checkpoint_level: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns sum_l p_l r_l with p = softmax_l(scale * query . rms_norm(r_l)).

    Args:
        query: D values in any shape.
        residuals: L tensors [..., D].
        rms_weight: [D] weight of the norm that the scores see.
        output_rms_weight: [D]; if given, the sum is normalised with it.
        rms_eps: Epsilon of both norms.
        scale: factor of the scores.
        return_weights: also returns p, [L, ...].
        checkpoint_level: of fla's kernel.
    """
    width = residuals[0].shape[-1]
    sources = torch.stack([r.float() for r in residuals])
    keys = F.rms_norm(sources, (width,), rms_weight.float().flatten(), rms_eps)
    weights = (keys @ (query.float().flatten() * scale)).softmax(0)
    mixed = (weights.unsqueeze(-1) * sources).sum(0)
    if output_rms_weight is not None:
        mixed = F.rms_norm(mixed, (width,), output_rms_weight.float(), rms_eps)
    mixed = mixed.to(residuals[0].dtype)
    return (mixed, weights) if return_weights else mixed
