"""Attention under a mask given as a function, which CAT calls through compiled flex attention.

Compiled flex attention has no backward pass on CPUs, and needs a compiler. CAT's masks (2511.05313)
are no triangles, so that the mask is held whole: one byte for each pair of tokens.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def create_block_mask(
    mask_mod: Callable[..., Tensor], B: None, H: None, Q_LEN: int, KV_LEN: int
) -> Tensor:
    """[Q_LEN, KV_LEN] whether a query sees a key; a function of their positions alone."""
    none = torch.zeros((), dtype=torch.long)
    return mask_mod(none, none, torch.arange(Q_LEN)[:, None], torch.arange(KV_LEN))


def flex_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor) -> Tensor:
    """Softmax attention of `q` [B, H, T, D] to `k`, `v` [B, H, S, D] under the mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=block_mask.to(q.device))
