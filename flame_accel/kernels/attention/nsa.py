"""Native sparse attention under fla's name and signature.

o = g_cmp o_cmp + g_slc o_slc + g_swa o_swa (2502.11089). o_cmp attends to the mean keys and values
of the blocks that are complete; o_slc to the tokens of the `block_counts` blocks to which o_cmp
attends most, the first and the last two always among them; o_swa to a sliding window.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.moba import zero_padded_chunk_means
from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    dot_products,
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    hidden_key_mask,
    map_query_blocks,
    scale_or_default,
    softmax_weighted_sum,
    unfold_groups_from_batch,
)
from flame_accel.kernels.attention.softmax_attention import softmax_attention
from flame_accel.kernels.precision import without_autocast


@without_autocast
def parallel_nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor | None = None,
    g_slc: Tensor | None = None,
    g_swa: Tensor | None = None,
    block_indices: Tensor | None = None,
    block_counts: Tensor | int = 16,
    block_size: int = 64,
    window_size: int = 0,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`q` [B, T, H, D], the last T of S positions, with `k`, `v` [B, S, G, D] -> [B, T, H, D].

    Args:
        q: Queries; H is a multiple of G.
        k: Keys.
        v: Values.
        g_cmp: Gates of the compressed blocks [B, T, H]; these count for nothing if None.
        g_slc: Gates of the selected blocks; 1 if None.
        g_swa: Gates of the sliding window.
        block_indices: The blocks that a query selects [B, T, G, M]; those after its own, and
            negative numbers, do not count. If None, they are those that match best.
        block_counts: How many blocks a query selects, one number or [B, T, G].
        block_size: Tokens of a block.
        window_size: Tokens of the sliding window, 0 for none.
        scale: Of the blocks' scores, 1 / sqrt(D) if None; those of the window have the latter.
        cu_seqlens: Boundaries of packed documents [N + 1], with B = 1; a pair where queries and
            keys have different ones.

    Raises:
        UserError: Nothing says which blocks are selected.
    """
    if g_cmp is None and block_indices is None:
        raise UserError(
            "native sparse attention selects blocks by g_cmp's attention, or block_indices, and "
            "got neither",
            remedy="give one of them",
        )
    if isinstance(block_counts, int):
        block_counts = torch.full_like(q[..., : k.shape[2], 0], block_counts, dtype=torch.long)
    if block_indices is None:
        block_indices = block_counts.new_empty(*block_counts.shape, 0)
    function = partial(_nsa_attention, block_size=block_size, window_size=window_size, scale=scale)
    gates = (g_cmp, g_slc, g_swa if window_size else None)
    inputs = (*gates, block_indices, block_counts)
    if isinstance(cu_seqlens, tuple) and torch.equal(*cu_seqlens):
        cu_seqlens = cu_seqlens[0]
    if not isinstance(cu_seqlens, tuple):
        return map_rows_or_packed_documents(function, cu_seqlens, q, k, v, *inputs)
    edges_q, edges_k = (pairwise(x.tolist()) for x in cu_seqlens)
    outputs = []
    for (begin, end), (first, last) in zip(edges_q, edges_k, strict=True):
        if begin == end:
            continue
        own: list[Any] = [None if x is None else x[:, begin:end] for x in inputs]
        outputs.append(function(q[:, begin:end], k[:, first:last], v[:, first:last], *own))
    return torch.cat(outputs, 1)


def _nsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor | None,
    g_slc: Tensor | None,
    g_swa: Tensor | None,
    block_indices: Tensor,
    block_counts: Tensor,
    block_size: int,
    window_size: int,
    scale: float | None,
) -> Tensor:
    """As `parallel_nsa`; `block_indices` [B, T, G, 0] if they are those that match best."""
    groups = k.shape[2]
    scale = scale_or_default(scale, q.shape[-1])
    g_cmp = torch.zeros_like(q[..., 0]) if g_cmp is None else g_cmp
    g_slc = torch.ones_like(q[..., 0]) if g_slc is None else g_slc
    rows = [fold_groups_into_fp32_batch(x, groups) for x in (q * scale, g_cmp, g_slc)]
    rows += [x.transpose(1, 2).flatten(0, 1) for x in (block_indices, block_counts)]
    columns = [fold_key_heads_into_fp32_batch(k), fold_key_heads_into_fp32_batch(v)]
    means = [zero_padded_chunk_means(x, block_size) for x in columns]
    formula = partial(
        _nsa_attention_block,
        block_size=block_size,
        most_blocks=min(int(block_counts.max()), means[0].shape[1]),
    )
    o = unfold_groups_from_batch(map_query_blocks(formula, rows, columns, means), groups).to(
        q.dtype
    )
    if g_swa is not None:
        # fla gives the window no scale
        near = softmax_attention(q, k, v, left_window=window_size - 1, right_window=0)
        o = o + near * g_swa.unsqueeze(-1)
    return o


def _nsa_attention_block(
    q: Tensor,
    g_cmp: Tensor,
    g_slc: Tensor,
    block_indices: Tensor,
    block_counts: Tensor,
    k: Tensor,
    v: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    block_size: int,
    most_blocks: int,
) -> Tensor:
    num_keys = k.shape[1]
    position = torch.arange(num_keys - q.shape[1], num_keys, device=q.device)[:, None, None]
    block = torch.arange(k_mean.shape[1], device=q.device)
    complete = (block + 1) * block_size <= position + 1
    weights = dot_products(q, k_mean).masked_fill(~complete, -torch.inf).softmax(-1).nan_to_num(0.0)
    compressed = dot_products(weights, v_mean.mT)
    own = position // block_size
    selected = block_indices.unsqueeze(2)
    if not selected.shape[-1]:
        # no probability reaches 2; ranks among the blocks that are always selected
        always = 4.0 * (block == own) + 3.0 * (block == 0) + 2.0 * (block == own - 1)
        rank = weights.detach().mean(2, keepdim=True) + always
        selected = rank.topk(most_blocks).indices
    slot = torch.arange(selected.shape[-1], device=q.device)
    counts = (selected >= 0) & (selected <= own) & (slot < block_counts[..., None, None])
    # a block that is selected twice counts twice, as in fla's kernels
    times = torch.zeros(*selected.shape[:3], len(block), device=q.device)
    times = times.scatter_add(-1, selected.clamp(0, len(block) - 1), counts.float())
    seen = times.log().repeat_interleave(block_size, -1)[..., :num_keys]
    scores = dot_products(q, k) + seen
    hide = hidden_key_mask(q.shape[1], num_keys, q.device)
    chosen = softmax_weighted_sum(scores.masked_fill(hide, -torch.inf), v)
    return compressed * g_cmp.unsqueeze(-1) + chosen * g_slc.unsqueeze(-1)
