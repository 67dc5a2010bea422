"""Mixture of block attention under fla's name and signature.

A query attends to its own chunk, and to the `topk` - 1 chunks before it whose mean key has the
largest product with it (2502.13189). fla's own implementation is built on parts of flash-attn.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    dot_products,
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    hidden_key_mask,
    map_query_blocks,
    softmax_weighted_sum,
    unfold_groups_from_batch,
)
from flame_accel.kernels.attention.softmax_attention import softmax_attention
from flame_accel.kernels.precision import without_autocast


@without_autocast
def parallel_moba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    chunk_size: int,
    topk: int,
) -> Tensor:
    """`q` [1, T, H, D] with `k`, `v` [1, T, G, D] in documents of `cu_seqlens` -> [1, T, H, D].

    With `topk` 1 it is attention to all earlier tokens, as in fla.
    """
    function = (
        partial(softmax_attention, right_window=0)
        if topk == 1
        else partial(_moba_attention, chunk_size=chunk_size, num_earlier_chunks=topk - 1)
    )
    return map_rows_or_packed_documents(function, cu_seqlens, q, k, v)


def _moba_attention(
    q: Tensor, k: Tensor, v: Tensor, chunk_size: int, num_earlier_chunks: int
) -> Tensor:
    groups = k.shape[2]
    rows = [fold_groups_into_fp32_batch(q, groups)]
    columns = [fold_key_heads_into_fp32_batch(k), fold_key_heads_into_fp32_batch(v)]
    chunk_mean_keys = zero_padded_chunk_means(columns[0].detach(), chunk_size)
    formula = partial(
        _moba_attention_block,
        chunk_size=chunk_size,
        num_earlier_chunks=min(num_earlier_chunks, chunk_mean_keys.shape[1]),
    )
    return unfold_groups_from_batch(
        map_query_blocks(formula, rows, columns, [chunk_mean_keys]), groups
    ).to(q.dtype)


def zero_padded_chunk_means(x: Tensor, chunk_size: int) -> Tensor:
    """[P, S, D] -> mean of every chunk [P, chunks, D], a last one filled up with zeros."""
    x = F.pad(x, (0, 0, 0, -x.shape[1] % chunk_size))
    return x.unflatten(1, (-1, chunk_size)).mean(2)


def _moba_attention_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_mean_keys: Tensor,
    chunk_size: int,
    num_earlier_chunks: int,
) -> Tensor:
    num_keys = k.shape[1]
    chunk = torch.arange(chunk_mean_keys.shape[1], device=q.device)
    own = (
        torch.arange(num_keys - q.shape[1], num_keys, device=q.device)[:, None, None] // chunk_size
    )
    gates = dot_products(q.detach(), chunk_mean_keys).masked_fill(chunk >= own, -torch.inf)
    chosen = torch.zeros_like(gates, dtype=torch.bool)
    chosen.scatter_(-1, gates.topk(num_earlier_chunks).indices, True).logical_and_(chunk < own)
    chosen |= chunk == own
    seen = chosen.repeat_interleave(chunk_size, -1)[..., :num_keys]
    hide = ~seen | hidden_key_mask(q.shape[1], num_keys, q.device)
    scores = dot_products(q * q.shape[-1] ** -0.5, k)
    return softmax_weighted_sum(scores.masked_fill(hide, -torch.inf), v)
