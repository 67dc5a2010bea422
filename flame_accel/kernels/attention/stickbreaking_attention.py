"""Stick-breaking attention under fla's name and signature, and the layer that calls it.

z_ij = scale q_i . k_j, A_ij = sigmoid(z_ij) prod_l (1 - sigmoid(z_il)) over the keys l that query i
sees after j; o_i = sum_j A_ij v_j (2410.17980).
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from fla.layers.utils import repad_hidden_states, unpad_hidden_states
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.query_blocks import (
    dot_products,
    fold_groups_into_fp32_batch,
    fold_key_heads_into_fp32_batch,
    hidden_key_mask,
    map_query_blocks,
    scale_or_default,
    unfold_groups_from_batch,
)
from flame_accel.kernels.precision import without_autocast

if TYPE_CHECKING:
    from fla.layers.stickbreaking_attn import StickBreakingAttention


@without_autocast
def parallel_stickbreaking_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    attend_current: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`q` [B, T, H, D] with `k` [B, T, G, D], `v` [B, T, G, V] -> [B, T, H, V] and [B, T, H].

    The second value is what a query leaves unused, 1 - sum_j A_ij. A query sees its own key only
    with `attend_current`; `cu_seqlens` [N + 1] are the boundaries of packed documents, with B = 1.
    """
    function = partial(
        _stickbreaking_outputs_then_unused_weight, scale=scale, attend_current=attend_current
    )
    o = map_rows_or_packed_documents(function, cu_seqlens, q, k, v)
    return o[..., :-1].to(q.dtype), o[..., -1].to(q.dtype)


def forward_stickbreaking_or_raise_if_cached(
    layer: "StickBreakingAttention",
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    output_attentions: bool = False,
    use_cache: bool = False,
    **options: Any,
) -> tuple[Tensor, None, None]:
    """Stands in for `StickBreakingAttention.forward`, which wants a GPU and half precision."""
    if use_cache or past_key_values is not None or output_attentions:
        raise UserError("stick-breaking attention has neither a cache nor attention matrices")
    batch, length = hidden_states.shape[:2]
    x, indices, cu_seqlens = unpad_hidden_states(
        hidden_states, options.get("cu_seqlens"), attention_mask, length
    )
    q, k, v = (
        projection(x).unflatten(-1, (-1, layer.head_dim))
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    if layer.qk_norm:
        q, k = layer.q_norm(q), layer.k_norm(k)
    o, _ = parallel_stickbreaking_attn(
        q, k, v, attend_current=layer.attend_current, cu_seqlens=cu_seqlens
    )
    o = layer.o_proj(o.flatten(-2))
    return repad_hidden_states(o, indices, batch, length), None, None


def _stickbreaking_outputs_then_unused_weight(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, attend_current: bool
) -> Tensor:
    groups = k.shape[2]
    scale = scale_or_default(scale, q.shape[-1])
    columns = [fold_key_heads_into_fp32_batch(k), fold_key_heads_into_fp32_batch(v)]
    formula = partial(_stickbreaking_block_then_unused_weight, attend_current=attend_current)
    o = map_query_blocks(formula, [fold_groups_into_fp32_batch(q * scale, groups)], columns)
    return unfold_groups_from_batch(o, groups)


def _stickbreaking_block_then_unused_weight(
    q: Tensor, k: Tensor, v: Tensor, attend_current: bool
) -> Tensor:
    hide = hidden_key_mask(q.shape[1], k.shape[1], q.device)
    if not attend_current:
        # a key is hidden if the one after it would be
        hide = F.pad(hide[..., 1:], (0, 1), value=True)
    z = dot_products(q, k)
    passed = F.logsigmoid(-z).masked_fill(hide, 0.0)
    # without the key itself: what passes it would drown the others in the gradient
    later = F.pad(passed[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
    weights = (F.logsigmoid(z) + later).masked_fill(hide, -torch.inf).exp()
    return torch.cat([dot_products(weights, v.mT), passed.sum(-1, keepdim=True).exp()], -1)
