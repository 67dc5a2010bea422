"""Softmax attention with forget gates and attention sinks, under fla's names and signatures.

s_ij = scale q_i . k_j + sum_{l=j+1..i} g_l, o_i = sum_j exp(s_ij) v_j / (sum_j exp(s_ij) + exp(b))
over j <= i, or over the last `window_size` keys; b is the head's sink (2503.02130, 1706.03762).
Without gates and sinks `softmax_attention` does it.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    causally_masked_dot_products,
    expand_sink_logits_to_optional_list,
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    map_query_blocks,
    scale_or_default,
    softmax_weighted_sum,
    unfold_groups_from_batch,
)
from flame_accel.kernels.attention.softmax_attention import softmax_attention
from flame_accel.kernels.precision import without_autocast


@without_autocast
def parallel_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    sink_bias: Tensor | None = None,
) -> Tensor:
    """Attention of `q` [B, T, H, D] to `k` [B, T, G, D], `v` [B, T, G, V] -> [B, T, H, V].

    Args:
        q: Queries; H is a multiple of G.
        k: Keys.
        v: Values.
        g: Logarithms of forget gates [B, T, H].
        scale: 1 / sqrt(D) if None.
        window_size: How many keys a query sees, its own included; 0 leaves all to the sinks.
        cu_seqlens: Boundaries of packed documents [N + 1], with B = 1.
        sink_bias: Logits of the heads' sinks [H].
    """
    if window_size == 0:
        # zeros, with gradients of 0
        nothing = sum(x.flatten()[:0].sum() for x in (q, k, v, g, sink_bias) if x is not None)
        return (q.new_zeros(*q.shape[:3], v.shape[-1]) + nothing).to(q.dtype)
    function = partial(
        _forgetting_attention, sink_logits=sink_bias, scale=scale, window_size=window_size
    )
    return map_rows_or_packed_documents(function, cu_seqlens, q, k, v, g)


@without_autocast
def attn_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    do_gate_scale: bool = False,
    *,
    window_size: int | None = None,
    sink_bias: Tensor | None = None,
) -> Tensor:
    """Attention of the last token of every document, `q` [1, N, H, D], to all of its tokens.

    The others as in `parallel_attn`; `do_gate_scale` multiplies the gates by `scale`.
    """
    assert cu_seqlens is not None, "decoding needs the boundaries of the documents"
    if do_gate_scale and g is not None:
        g = g * scale_or_default(scale, k.shape[-1])
    outputs = []
    for document, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        keys, values = k[:, begin:end], v[:, begin:end]
        gates = None if g is None else g[:, begin:end]
        query = q[:, document : document + 1]
        if begin == end or window_size == 0:
            outputs.append(query.new_zeros(1, 1, q.shape[2], v.shape[-1]))
        else:
            outputs.append(
                _forgetting_attention(query, keys, values, gates, sink_bias, scale, window_size)
            )
    return torch.cat(outputs, 1)


def _forgetting_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    sink_logits: Tensor | None,
    scale: float | None,
    window_size: int | None,
) -> Tensor:
    left_window = -1 if window_size is None else window_size - 1
    if g is None and sink_logits is None:
        return softmax_attention(q, k, v, scale, left_window, 0)
    groups = k.shape[2]
    scale = scale_or_default(scale, k.shape[-1])
    # double, since differences of large sums are what counts
    gates = k.new_zeros(*k.shape[:2], q.shape[2]) if g is None else g
    sums = fold_groups_into_fp32_batch(gates.double().cumsum(1), groups)
    o = map_query_blocks(
        partial(_forgetting_attention_block, left_window=left_window),
        [fold_groups_into_fp32_batch(q * scale, groups), sums[:, -q.shape[1] :]],
        [fold_key_heads_into_fp32_batch(k), fold_key_heads_into_fp32_batch(v), sums],
        expand_sink_logits_to_optional_list(sink_logits, q.shape[0], groups),
        left_window=left_window,
    )
    return unfold_groups_from_batch(o, groups).to(q.dtype)


def _forgetting_attention_block(
    q: Tensor,
    cumulative_g_q: Tensor,
    k: Tensor,
    v: Tensor,
    cumulative_g_k: Tensor,
    *sink_logits: Tensor,
    left_window: int,
) -> Tensor:
    start = cumulative_g_q[:, :1].detach()
    gates = (cumulative_g_q - start).float().unsqueeze(-1) + (
        start - cumulative_g_k
    ).float().mT.unsqueeze(1)
    return softmax_weighted_sum(
        causally_masked_dot_products(q, k, left_window) + gates, v, *sink_logits
    )
