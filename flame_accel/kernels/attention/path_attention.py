"""PaTH attention under fla's name and signature: softmax attention through Householder products.

s_ij = scale (q_i^T H_i H_{i-1} ... H_{j+1} k_j + sum_{l=j+1..i} g_l), H_t = I - beta_t w_t w_t^T,
over j <= i (2505.16381). In chunks: queries are carried to the start of their chunk, keys to the
end of theirs, and queries on through one matrix for every chunk between.

Shape letters as in `query_blocks`; N chunks, C tokens of a chunk.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    hidden_key_mask,
    map_query_blocks,
    scale_or_default,
    softmax_weighted_sum,
    unfold_groups_from_batch,
)
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.sequences import split_sequences

CHUNK = 64


@without_autocast
def parallel_path_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`q` [B, T, H, D] with `k`, `w` [B, T, G, D], `v` [B, T, G, V] -> [B, T, H, V].

    Args:
        q: Queries; H is a multiple of G.
        k: Keys.
        v: Values.
        w: Directions of the Householder matrices, of length 1.
        beta: Their factors [B, T, G].
        g: Logarithms of forget gates [B, T, H].
        scale: 1 / sqrt(D) if None.
        cu_seqlens: Boundaries of packed documents [N + 1], with B = 1.
        use_cache: Whether the keys carried to the end of the sequence are returned too [B, T, G,
            D], for `attn_decoding_one_step`.
    """
    attend = partial(_path_attention, scale=scale_or_default(scale, k.shape[-1]))
    o = map_rows_or_packed_documents(attend, cu_seqlens, q, k, v, w, beta, g)
    if not use_cache:
        return o, None
    # keys are carried over later tokens: no padding may follow a document
    documents = zip(*(split_sequences(x, cu_seqlens) for x in (k, w, beta)), strict=True)
    return o, torch.cat([_transform_keys_to_sequence_end(*x) for x in documents], 1)


class _ChunkTransitions(NamedTuple):
    """What the Householder matrices do within chunks; they act on columns x as x - w^T solve x."""

    w: Tensor
    """[P, N, C, D]"""
    solve: Tensor
    """[P, N, C, D]"""
    k: Tensor
    """[P, N, C, D] keys carried to the end of their chunk."""
    own: Tensor
    """[P, N, C, C] by how much of w_t key j is changed until the end of the chunk."""
    through: Tensor
    """[P, N, D, D] from the start of a chunk to its end."""


def _compute_chunk_transitions(k: Tensor, w: Tensor, beta: Tensor) -> _ChunkTransitions:
    groups = k.shape[2]
    k, w = (_pad_into_chunks(fold_key_heads_into_fp32_batch(x)) for x in (k, w))
    beta = _pad_into_chunks(fold_groups_into_fp32_batch(beta, groups))
    scaled = w * beta
    inner = torch.eye(CHUNK, device=w.device) + (scaled @ w.mT).tril(-1)
    both = torch.cat([scaled, (scaled @ k.mT).tril(-1)], -1)
    solve, own = torch.linalg.solve_triangular(inner, both, upper=False, unitriangular=True).split(
        [w.shape[-1], CHUNK], -1
    )
    through = torch.eye(w.shape[-1], device=w.device) - w.mT @ solve
    return _ChunkTransitions(w, solve, k - own.mT @ w, own, through)


def _pad_into_chunks(x: Tensor) -> Tensor:
    """[P, T, ...] -> [P, N, C, ...], zeros in the padding: Householder matrices of no effect."""
    padding = (0, 0) * (x.dim() - 2) + (0, -x.shape[1] % CHUNK)
    return F.pad(x, padding).unflatten(1, (-1, CHUNK))


def _path_attention(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, g: Tensor | None, scale: float
) -> Tensor:
    groups, length, dtype = k.shape[2], q.shape[1], q.dtype
    chunks = _compute_chunk_transitions(k, w, beta)
    sums = []
    if g is not None:
        gates = fold_groups_into_fp32_batch((g * scale).double().cumsum(1), groups)
        sums.append(_pad_into_chunks(gates))
    q = _pad_into_chunks(fold_groups_into_fp32_batch(q * scale, groups))
    flat = q.flatten(2, 3)
    along = (flat @ chunks.w.mT).unflatten(2, q.shape[2:4])
    later = hidden_key_mask(CHUNK, CHUNK, q.device)
    along = along.masked_fill(later, 0.0).flatten(2, 3)
    keys = _pad_into_chunks(fold_key_heads_into_fp32_batch(k))
    scores = (flat @ keys.mT - along @ chunks.own).unflatten(2, q.shape[2:4])
    o = map_query_blocks(
        _path_attention_block,
        [(flat - along @ chunks.solve).view_as(q), scores.masked_fill(later, -torch.inf)],
        [chunks.k, _pad_into_chunks(fold_key_heads_into_fp32_batch(v)), chunks.through, *sums],
        block_size=1,
    )
    return unfold_groups_from_batch(o.flatten(1, 2)[:, :length], groups).to(dtype)


def _path_attention_block(
    q: Tensor,
    own_chunk_scores: Tensor,
    k: Tensor,
    v: Tensor,
    transition_matrices: Tensor,
    *cumulative_g: Tensor,
) -> Tensor:
    """`q` of one chunk [P, 1, C, R, D]; keys, values and matrices of the chunks up to it."""
    shape, x = q.shape[2:4], q.flatten(1, 3)
    blocks = [own_chunk_scores.squeeze(1)]
    earlier = zip(k.unbind(1)[:-1], transition_matrices.unbind(1)[:-1], strict=True)
    for keys, matrix in reversed(list(earlier)):
        blocks.append((x @ keys.mT).unflatten(1, shape))
        x = x @ matrix
    scores = torch.cat(blocks[::-1], -1)
    for sums_k in cumulative_g:
        start = sums_k[:, -1:, :1].detach()
        here = (sums_k[:, -1] - start[:, 0]).float().unsqueeze(-1)
        scores = scores + here + (start - sums_k).float().flatten(1, 2).mT.unsqueeze(1)
    return softmax_weighted_sum(scores, v.flatten(1, 2)).unsqueeze(1)


def _transform_keys_to_sequence_end(k: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    """Keys carried to the end of the sequence, [B, T, G, D]."""
    if not k.shape[1]:
        return k
    chunks = _compute_chunk_transitions(k, w, beta)
    carried = chunks.k[:, 0]
    for chunk in range(1, chunks.k.shape[1]):
        carried = torch.cat([carried @ chunks.through[:, chunk].mT, chunks.k[:, chunk]], 1)
    return unfold_groups_from_batch(carried[:, : k.shape[1]].unsqueeze(2), k.shape[2]).to(k.dtype)
