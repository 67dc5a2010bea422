"""Parallax under fla's names and signatures: softmax attention with a correction of first order.

p_ij = softmax_j(scale q_i . k_j), t_ij = r_i . k_j,
o_i = sum_j p_ij (1 + sum_l p_il t_il - t_ij) v_j over j <= i (2605.29157).
"""

from functools import partial

import torch
from torch import Tensor

from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    causally_masked_dot_products,
    dot_products,
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    map_query_blocks,
    scale_or_default,
    unfold_groups_from_batch,
)
from flame_accel.kernels.precision import without_autocast


@without_autocast
def parallel_parallax(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """`q`, `r` [B, T, H, D] with `k`, `v` [B, T, G, D] -> [B, T, H, D].

    `window_size` counts the keys that a query sees, its own included; `scale` is 1 / sqrt(D) if
    None; `cu_seqlens` [N + 1] are the boundaries of packed documents, with B = 1.
    """
    function = partial(_parallax_attention, scale=scale, window_size=window_size)
    return map_rows_or_packed_documents(function, cu_seqlens, q, r, k, v)


@without_autocast
def parallax_decode(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    cache_start: Tensor | None = None,
) -> Tensor:
    """As `parallel_parallax`, of the last T of S keys; `cache_start` [B] is the first that counts.

    Queries before it yield zeros.
    """
    return _parallax_attention(q, r, k, v, scale, window_size, cache_start)


def _parallax_attention(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    window_size: int | None,
    cache_start: Tensor | None = None,
) -> Tensor:
    groups, left_window = k.shape[2], -1 if window_size is None else window_size - 1
    scale = scale_or_default(scale, q.shape[-1])
    columns = [fold_key_heads_into_fp32_batch(k), fold_key_heads_into_fp32_batch(v)]
    if cache_start is not None:
        is_padding_key = torch.arange(k.shape[1], device=k.device) < cache_start[:, None]
        columns.append(is_padding_key.repeat_interleave(groups, 0))
    rows = [fold_groups_into_fp32_batch(q * scale, groups), fold_groups_into_fp32_batch(r, groups)]
    o = map_query_blocks(
        partial(_parallax_attention_block, left_window=left_window),
        rows,
        columns,
        left_window=left_window,
    )
    return unfold_groups_from_batch(o, groups).to(q.dtype)


def _parallax_attention_block(
    q: Tensor, r: Tensor, k: Tensor, v: Tensor, *is_padding_key: Tensor, left_window: int
) -> Tensor:
    scores = causally_masked_dot_products(q, k, left_window)
    for hide in is_padding_key:
        scores = scores.masked_fill(hide[:, None, None], -torch.inf)
    weights = scores.softmax(-1)
    if is_padding_key:
        weights = weights.nan_to_num(0.0)
    slopes = dot_products(r, k)
    mean = (weights * slopes).sum(-1, keepdim=True)
    return dot_products(weights * (1 + mean - slopes), v.mT)
