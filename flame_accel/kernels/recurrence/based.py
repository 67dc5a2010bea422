"""Attention with polynomial scores under fla's names: Based and ReBased.

A score is a polynomial of a = scale * q_t . k_s: 1 + a + a^2 / 2, the Taylor series of exp (Arora
et al., arXiv 2402.18668), or a^2 (Aksenov et al., arXiv 2402.10644). It is a product of features of
q_t and k_s, so that linear attention computes the outputs, in time linear in the length.

Shape letters: B batch, T tokens, H heads, D key and V value channels.
"""

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.decay import decay_attention


@without_autocast
def parallel_based(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, use_norm: bool = True
) -> Tensor:
    """Outputs [B, T, H, V] in the dtype of `q`, divided by the sum of the scores if `use_norm`.

    Args:
        q: [B, T, H, D].
        k: [B, T, H, D].
        v: [B, T, H, V].
        scale: factor of q . k; 1 / sqrt(D) if None.
        use_norm: see above.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    o, z = _attend(_taylor(q.float() * factor), _taylor(k.float()), v)
    return (o / (z + 1e-6) if use_norm else o).to(q.dtype)


def fused_chunk_based(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, use_norm: bool = True
) -> Tensor:
    """As `parallel_based`."""
    return parallel_based(q, k, v, scale, use_norm)


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
    """Outputs [B, T, H, V] in the dtype of `q`, divided by the sum of the scores plus `eps`.

    Args:
        q: [B, T, H, D].
        k: [B, T, H, D].
        v: [B, T, H, V].
        eps: see above.
        use_scale: whether q . k is divided by sqrt(D).
        use_normalize: whether to divide.
        return_both: returns the undivided outputs [B, H, T, V] and the sums [B, H, T] instead.
    """
    scale = q.shape[-1] ** -0.5 if use_scale else 1.0
    o, z = _attend(_squares(q.float() * scale), _squares(k.float()), v)
    if return_both:
        return o.transpose(1, 2), z.squeeze(-1).transpose(1, 2)
    return (o / (z + eps) if use_normalize else o).to(q.dtype)


def _squares(x: Tensor) -> Tensor:
    """[..., D] -> [..., D^2]: products of features are squared products."""
    return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


def _taylor(x: Tensor) -> Tensor:
    """[..., D] -> [..., 1 + D + D^2]."""
    return torch.cat([torch.ones_like(x[..., :1]), x, _squares(x) * 0.5**0.5], -1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Undivided outputs [B, T, H, V] and sums of scores [B, T, H, 1], fp32."""
    v = torch.cat([v.float(), torch.ones_like(v[..., :1], dtype=torch.float32)], -1)
    o, _ = decay_attention(q, k, v, None, scale=1.0)
    return o[..., :-1], o[..., -1:]
