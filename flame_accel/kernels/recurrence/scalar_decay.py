"""Decays per head between the tokens of a chunk, for operators that leave gradients to autograd.

`decay_intra_chunk` has the same factors with gradients of its own.
"""

import torch
from torch import Tensor


def scalar_decays(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors <= 1 from log decays `g` [..., C]; exponents never overflow.

    Returns:
        From token j to token i >= j [..., C, C], 0 above the diagonal; from the start of the chunk
        to each token, its own decay included [..., C]; from each token to the end [..., C].
    """
    # sums in double, so that differences of large sums keep the precision of fp32; exp(-100) is 0
    sums = g.double().clamp_min(-100.0).cumsum(-1)
    later = torch.ones(2 * g.shape[-1:], dtype=torch.bool, device=g.device).triu_(1)
    between = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(later, -torch.inf)
    return between.float().exp(), sums.float().exp(), (sums[..., -1:] - sums).float().exp()
