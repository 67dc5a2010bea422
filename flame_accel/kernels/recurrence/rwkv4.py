"""RWKV4's attention under fla's name: averages of values that decay, with a bonus for the token.

    o_t = (sum_{s < t} exp(k_s - (t - 1 - s) r) v_s + exp(u + k_t) v_t) / (the same without v)

with rates r = exp(w) per channel (Peng et al., arXiv 2305.13048). The state holds both sums divided
by exp(m), and m, so that nothing overflows. Token by token: no layer of fla calls it.
"""

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast


@without_autocast
def fused_recurrent_rwkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, D] and the state after the last token [B, 3, 1, D], in the dtype of `k`.

    Args:
        w: logarithms of the rates [D].
        u: bonus [D].
        k: [B, T, D].
        v: [B, T, D].
        state: numerator, denominator and their common exponent [B, 3, 1, D].
    """
    decay, bonus = -w.float().exp(), u.float()
    numerator, denominator, exponent = state.float().squeeze(2).unbind(1)
    outputs = []
    for key, value in zip(k.float().unbind(1), v.float().unbind(1), strict=True):
        largest = torch.maximum(bonus + key, exponent)
        past, now = (exponent - largest).exp(), (bonus + key - largest).exp()
        outputs.append((past * numerator + now * value) / (past * denominator + now))
        largest = torch.maximum(decay + exponent, key)
        past, now = (decay + exponent - largest).exp(), (key - largest).exp()
        numerator, denominator = past * numerator + now * value, past * denominator + now
        exponent = largest
    final = torch.stack((numerator, denominator, exponent), 1).unsqueeze(2)
    return torch.stack(outputs, 1).to(k.dtype), final.to(k.dtype)
