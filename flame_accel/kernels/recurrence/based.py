"""Attention with polynomial scores under fla's names: Based and ReBased.

    o_t = sum_{s <= t} f(scale * q_t . k_s) v_s / sum_{s <= t} f(scale * q_t . k_s)

with f(a) = 1 + a + a^2 / 2, the Taylor series of exp (Based, Arora et al., arXiv 2402.18668), or
f(a) = a^2 (ReBased, Aksenov et al., arXiv 2402.10644). Such a score is a dot product of features of
q_t and k_s, so that `linear_attention` computes the outputs, in time linear in the length.

Shape letters: B batch, T tokens, H heads, D key width, V value width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.linear_attention import linear_attention


@without_autocast
def parallel_based(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, use_norm: bool = True
) -> Tensor:
    """Outputs [B, T, H, V] in the dtype of `q`, with f(a) = 1 + a + a^2 / 2.

    Args:
        q: [B, T, H, D].
        k: [B, T, H, D].
        v: [B, T, H, V].
        scale: factor of q . k; 1 / sqrt(D) if None.
        use_norm: whether to divide by the sum of the scores.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q_features, k_features = (
        _exp_taylor_features(q.float() * factor),
        _exp_taylor_features(k.float()),
    )
    o, score_sums = _unnormalized_causal_attention(q_features, k_features, v)
    return (o / (score_sums + 1e-6) if use_norm else o).to(q.dtype)


@without_autocast
def parallel_rebased(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
    return_both: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] in the dtype of `q`, with f(a) = a^2.

    Args:
        q: [B, T, H, D].
        k: [B, T, H, D].
        v: [B, T, H, V].
        eps: added to the sum of the scores.
        use_scale: whether q . k is divided by sqrt(D).
        use_normalize: whether to divide by the sum of the scores.
        return_both: return the unnormalized outputs [B, H, T, V] and the sums [B, H, T] instead.
    """
    scale = q.shape[-1] ** -0.5 if use_scale else 1.0
    q_features, k_features = (
        _outer_product_features(q.float() * scale),
        _outer_product_features(k.float()),
    )
    o, score_sums = _unnormalized_causal_attention(q_features, k_features, v)
    if return_both:
        return o.transpose(1, 2), score_sums.squeeze(-1).transpose(1, 2)
    return (o / (score_sums + eps) if use_normalize else o).to(q.dtype)


def _outer_product_features(x: Tensor) -> Tensor:
    """[..., D] -> [..., D^2]; features(x) . features(y) = (x . y)^2."""
    return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


def _exp_taylor_features(x: Tensor) -> Tensor:
    """[..., D] -> [..., 1 + D + D^2]; features(x) . features(y) = 1 + x . y + (x . y)^2 / 2."""
    return torch.cat([torch.ones_like(x[..., :1]), x, _outer_product_features(x) * 0.5**0.5], -1)


class _ValueAndScoreSums(NamedTuple):
    values: Tensor
    """Sums of the values, weighted by the scores [B, T, H, V], fp32."""
    scores: Tensor
    """Sums of the scores [B, T, H, 1], fp32."""


def _unnormalized_causal_attention(
    q_features: Tensor, k_features: Tensor, v: Tensor
) -> _ValueAndScoreSums:
    # a value channel of ones sums up the scores
    v = torch.cat([v.float(), torch.ones_like(v[..., :1], dtype=torch.float32)], -1)
    o, _ = linear_attention(q_features, k_features, v, None, scale=1.0)
    return _ValueAndScoreSums(o[..., :-1], o[..., -1:])
