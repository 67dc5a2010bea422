"""Decays within a chunk from log decays per head, for operators that leave gradients to autograd.

`linear_attention_intra_chunk` and `delta_rule_intra_chunk` have the same factors with gradients of
their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PairwiseAndBoundaryDecays(NamedTuple):
    """Products of the decays of consecutive tokens of a chunk of C tokens, all <= 1."""

    between_tokens: Tensor
    """[..., C, C] from token j (last) to token i >= j, 0 for i < j."""
    from_start: Tensor
    """[..., C] from the start of the chunk to each token, its own decay included."""
    to_end: Tensor
    """[..., C] from each token to the end of the chunk."""


def compute_pairwise_and_boundary_decays(chunk_log_decays: Tensor) -> PairwiseAndBoundaryDecays:
    """Factors in fp32 from `chunk_log_decays` [..., C]; exponents never overflow."""
    # sums in double, so that differences of large sums keep the precision of fp32; exp(-100) is 0
    cumulative_g = chunk_log_decays.double().clamp_min(-100.0).cumsum(-1)
    is_later = torch.ones(
        2 * chunk_log_decays.shape[-1:], dtype=torch.bool, device=chunk_log_decays.device
    ).triu_(1)
    between_tokens = cumulative_g.unsqueeze(-1) - cumulative_g.unsqueeze(-2)
    return PairwiseAndBoundaryDecays(
        between_tokens.masked_fill(is_later, -torch.inf).float().exp(),
        cumulative_g.float().exp(),
        (cumulative_g[..., -1:] - cumulative_g).float().exp(),
    )
