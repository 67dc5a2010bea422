"""Softmax attention over rows of one length; `scaled_dot_product_attention` picks the kernel.

o_i = sum_j softmax_j(scale q_i . k_j) v_j over the keys j that query i may see (1706.03762). The
queries are the last ones of the keys' positions: query i stands at i + (keys - queries), and sees
`left_window` keys before and `right_window` keys after its own; a negative number is no
limit. Rows of documents are cut in `per_document`.

Shape letters: B batch, T queries, S keys, H heads of queries, G heads of keys and values, D
channels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# a sliding window is computed in blocks of its size, of at least this many queries
SMALLEST_BLOCK = 64


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    left_window: int = -1,
    right_window: int = -1,
) -> Tensor:
    """Attention of `q` [B, T, H, D] to `k`, `v` [B, S, G, D] -> [B, T, H, D] in their dtype.

    Queries that see no key yield zeros. `scale` is 1 / sqrt(D) if None.
    """
    num_queries, num_keys = q.shape[1], k.shape[1]
    ahead = num_keys - num_queries
    if left_window >= 0 and ahead > left_window:
        k, v = k[:, ahead - left_window :], v[:, ahead - left_window :]
        num_keys, ahead = k.shape[1], left_window
    left_window = -1 if left_window >= num_keys - 1 else left_window
    right_window = -1 if right_window >= num_queries - 1 else right_window
    if left_window < 0 and right_window < 0:
        return _scaled_dot_product_attention(q, k, v, scale)
    if left_window < 0 and right_window == 0 and ahead == 0:
        return _scaled_dot_product_attention(q, k, v, scale, causal=True)
    block = max(left_window, SMALLEST_BLOCK)
    if right_window == 0 and ahead == 0 and num_queries > 2 * block:
        return _sliding_window_attention(q, k, v, scale, left_window, block)
    return _scaled_dot_product_attention(
        q,
        k,
        v,
        scale,
        mask=_visible_key_mask(num_queries, num_keys, left_window, right_window, q.device),
    )


def _sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, left_window: int, block_size: int
) -> Tensor:
    """Each block of queries sees the keys of its own block and of the one before."""
    batch, num_queries = q.shape[:2]
    missing = -num_queries % block_size
    q, k, v = (
        F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, block_size)).contiguous()
        for x in (q, k, v)
    )
    first = softmax_attention(q[:, 0], k[:, 0], v[:, 0], scale, left_window, 0)
    k, v = (torch.cat([x[:, :-1], x[:, 1:]], 2).flatten(0, 1) for x in (k, v))
    later = softmax_attention(q[:, 1:].flatten(0, 1), k, v, scale, left_window, 0)
    later = later.unflatten(0, (batch, -1)).flatten(1, 2)
    return torch.cat([first, later], 1)[:, :num_queries]


@lru_cache(maxsize=16)
def _visible_key_mask(
    num_queries: int, num_keys: int, left_window: int, right_window: int, device: torch.device
) -> Tensor:
    """[T, S] whether a query sees a key."""
    position = torch.arange(num_queries, device=device)[:, None] + (num_keys - num_queries)
    distance = torch.arange(num_keys, device=device) - position
    visible = torch.ones_like(distance, dtype=torch.bool)
    if left_window >= 0:
        visible &= distance >= -left_window
    if right_window >= 0:
        visible &= distance <= right_window
    return visible


def _scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    groups = q.shape[2] // k.shape[2]
    if groups > 1 and q.device.type != "cpu" and q.dtype.itemsize > 2:
        # no kernel of full precision shares heads; PyTorch would hold all scores in memory instead
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        groups = 1
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )
    return o.transpose(1, 2)
