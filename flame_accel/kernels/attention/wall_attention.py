"""Wall attention under fla's names and signatures: softmax attention with decays per channel.

s_ij = scale sum_n q_in k_jn exp(P_in - P_jn) + c_i - c_j, P and c the running sums of the log
decays g <= 0 of channels and of heads. Keys before a block of queries are decayed to where the
block starts, so that no exponent is positive; within the block every pair is decayed by itself.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    dot_products,
    expand_sink_logits_to_optional_list,
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    hidden_key_mask,
    map_query_blocks,
    scale_or_default,
    softmax_weighted_sum,
    unfold_groups_from_batch,
)
from flame_accel.kernels.precision import without_autocast

if TYPE_CHECKING:
    from fla.layers.wall_attn import WallAttention

BLOCK = 32


@without_autocast
def parallel_wall_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    g_scalar: Tensor | None = None,
    sink_bias: Tensor | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Attention of `q` [B, T, H, D] to `k` [B, T, G, D], `v` [B, T, G, V] -> [B, T, H, V].

    Args:
        q: Queries; H is a multiple of G.
        k: Keys.
        v: Values.
        g: Log decays per channel [B, T, H, D].
        g_scalar: Log decays per head [B, T, H].
        sink_bias: Logits of the heads' sinks [H].
        scale: 1 / sqrt(D) if None.
        window_size: How many keys a query sees, its own included.
        cu_seqlens: Boundaries of packed documents [N + 1], with B = 1.
    """
    function = partial(_wall_attention, sink_logits=sink_bias, scale=scale, window_size=window_size)
    return map_rows_or_packed_documents(function, cu_seqlens, q, k, v, g, g_scalar)


@torch.no_grad()
@without_autocast
def parallel_wall_attn_decode(
    q: Tensor,
    v: Tensor,
    p_curr: Tensor,
    k_tilde: Tensor,
    r_cache: Tensor,
    sink_bias: Tensor | None,
    scale: float,
    cache_chunk_size: int,
    g_scalar_cumsum: Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to a cache of keys that are decayed to where their chunk begins; no gradient.

    Running sums are base 2 logarithms, those of fla's `build_wall_kv_cache`.

    Args:
        q: The last T of S positions [B, T, H, D].
        v: [B, S, G, V]; H is a multiple of G.
        p_curr: Running sums of the log decays of channels, of the queries [B, T, H, D].
        k_tilde: Decayed keys [B, S, H, D].
        r_cache: The running sums where each chunk begins [B, chunks, H, D].
        sink_bias: Logits of the heads' sinks [H].
        scale: Of the scores.
        cache_chunk_size: Tokens of a chunk.
        g_scalar_cumsum: Running sums of the log decays of heads [B, S, H].
        window_size: How many keys a query sees, its own included.

    Returns:
        Outputs [B, T, H, V] in the dtype of `v`, and log2 of the sums of the weights [B, T, H].
    """
    num_queries, num_keys = q.shape[1], k_tilde.shape[1]
    queries, sums = q.float().transpose(1, 2), p_curr.float().transpose(1, 2)
    starts = r_cache.float().transpose(1, 2)
    scores = [
        (queries * (sums - starts[:, :, chunk, None]).exp2()) @ keys.mT
        for chunk, keys in enumerate(k_tilde.float().transpose(1, 2).split(cache_chunk_size, 2))
    ]
    logits = torch.cat(scores, -1) * (scale / math.log(2))
    if g_scalar_cumsum is not None:
        decays = g_scalar_cumsum.float().transpose(1, 2)
        logits = logits + decays[:, :, num_keys - num_queries :, None] - decays.unsqueeze(-2)
    left_window = -1 if window_size is None else window_size - 1
    hide = hidden_key_mask(num_queries, num_keys, q.device, left_window).squeeze(1)
    logits = logits.masked_fill(hide, -torch.inf) * math.log(2)
    total = logits.logsumexp(-1)
    if sink_bias is not None:
        total = torch.logaddexp(total, sink_bias.float().view(-1, 1))
    values = v.float().transpose(1, 2).repeat_interleave(q.shape[2] // v.shape[2], 1)
    o = (logits - total.unsqueeze(-1)).exp() @ values
    return o.transpose(1, 2).to(v.dtype), total.transpose(1, 2) / math.log(2)


def decode_incremental(
    layer: "WallAttention",
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    gs: Tensor | None,
    past_key_values: Cache,
    q_len: int,
) -> Tensor:
    """Stands in for `WallAttention._decode_incremental`.

    fla caches keys in bf16, scaled up within chunks of 64 tokens, which strong decays overflow;
    here the cache holds what the layer computed.
    """
    new = (k, v, g) if gs is None else (k, v, g, gs)
    k, v, g, *rest = past_key_values.update(
        attn_state=new, layer_idx=layer.layer_idx, offset=q_len
    )["attn_state"]
    return parallel_wall_attn(q, k, v, g, g_scalar=rest[0] if rest else None)


def decode_rebuild(
    layer: "WallAttention", q: Tensor, k: Tensor, v: Tensor, g: Tensor, gs: Tensor | None
) -> Tensor:
    """Stands in for `WallAttention._decode_rebuild`, which decodes with sliding windows."""
    return parallel_wall_attn(q, k, v, g, g_scalar=gs, window_size=layer.window_size)


def _wall_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_scalar: Tensor | None,
    sink_logits: Tensor | None,
    scale: float | None,
    window_size: int | None,
) -> Tensor:
    heads, left_window = q.shape[2], -1 if window_size is None else window_size - 1
    scale = scale_or_default(scale, q.shape[-1])
    shares = heads // k.shape[2]
    # every head has decays of its own, hence keys of its own
    k, v = (fold_key_heads_into_fp32_batch(x.repeat_interleave(shares, 2)) for x in (k, v))
    # double, since differences of large sums are what counts
    channels = fold_key_heads_into_fp32_batch(g.double().cumsum(1))
    scalars = channels[..., :1] * 0 if g_scalar is None else g_scalar.double().cumsum(1)
    scalars = scalars if g_scalar is None else fold_groups_into_fp32_batch(scalars, heads)
    own = slice(k.shape[1] - q.shape[1], None)
    o = map_query_blocks(
        partial(_wall_attention_block, left_window=left_window),
        [fold_groups_into_fp32_batch(q * scale, heads), channels[:, own], scalars[:, own]],
        [k, v, channels, scalars],
        expand_sink_logits_to_optional_list(sink_logits, q.shape[0], heads),
        left_window=left_window,
        block_size=BLOCK,
    )
    return unfold_groups_from_batch(o, heads).to(q.dtype)


def _wall_attention_block(
    q: Tensor,
    cumulative_g_q: Tensor,
    cumulative_g_scalar_q: Tensor,
    k: Tensor,
    v: Tensor,
    cumulative_g_k: Tensor,
    cumulative_g_scalar_k: Tensor,
    *sink_logits: Tensor,
    left_window: int,
) -> Tensor:
    num_rows, before = q.shape[1], k.shape[1] - q.shape[1]
    start = cumulative_g_q[:, :1].detach()
    decayed_q = q * (cumulative_g_q - start).float().exp().unsqueeze(2)
    decayed_k = k[:, :before] * (start - cumulative_g_k[:, :before]).float().exp()
    later = hidden_key_mask(num_rows, num_rows, q.device)
    decays = (cumulative_g_q.unsqueeze(2) - cumulative_g_k[:, None, before:]).float()
    pairs = q * k[:, None, before:] * decays.masked_fill(later.mT, -torch.inf).exp()
    scores = torch.cat([dot_products(decayed_q, decayed_k), pairs.sum(-1).unsqueeze(2)], -1)
    scores = (
        scores
        + (cumulative_g_scalar_q.unsqueeze(2) - cumulative_g_scalar_k.mT.unsqueeze(1)).float()
    )
    hide = hidden_key_mask(num_rows, k.shape[1], q.device, left_window)
    return softmax_weighted_sum(scores.masked_fill(hide, -torch.inf), v, *sink_logits)
