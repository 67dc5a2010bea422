"""Fixes the generation of fla's attention layers, on every device; what they compute stays theirs.

transformers, from some version on, drops an attention mask without padding before it generates.
Two of the layers decode only with a mask, the third only without. PaTH also compiles a line of its
decoding step anew in every process, with a compiler that the machine may not have, and takes no
padding without a cache. Some layers treat a window in their cache otherwise than in one pass.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch
from fla.layers.attn import Attention
from fla.layers.bitattn import BitAttention
from fla.layers.forgetting_attn import ForgettingAttention
from fla.layers.mla import MultiheadLatentAttention
from fla.layers.moba import MoBA
from fla.layers.nsa import NativeSparseAttention
from fla.layers.parallax import Parallax
from fla.layers.path_attn import PaTHAttention
from fla.layers.rodimus import SlidingWindowSharedKeyAttention
from fla.layers.wall_attn import WallAttention
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.padded_rows import (
    LayerOutput,
    forward_rows_without_padding,
    has_padding,
)


class _WindowedLayer(Protocol):
    layer_idx: Any
    window_size: Any


_forgetting_forward: Callable[..., LayerOutput] = ForgettingAttention.forward
_mla_forward: Callable[..., LayerOutput] = MultiheadLatentAttention.forward
_moba_forward: Callable[..., LayerOutput] = MoBA.forward
_path_forward: Callable[..., LayerOutput] = PaTHAttention.forward
_wall_forward: Callable[..., LayerOutput] = WallAttention.forward


def forward_forgetting_masked_after_clearing_window(
    layer: ForgettingAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **options: Any,
) -> LayerOutput:
    """`ForgettingAttention.forward` with a mask wherever there is a cache.

    Its window is only one of the cache: in one pass every token sees all earlier ones.
    """
    layer.window_size = None
    attention_mask = _given_mask_or_ones_if_cached(
        layer, hidden_states, attention_mask, past_key_values
    )
    return _forgetting_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def forward_path_with_mask_uncompiled(
    layer: PaTHAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **options: Any,
) -> LayerOutput:
    """`PaTHAttention.forward`; wherever there is a cache with a mask, and not compiled."""
    if past_key_values is None:
        # with a mask it asks for a cache, which it need not fill
        cache = None if attention_mask is None else Cache()
        o, attentions, _ = _path_forward(layer, hidden_states, attention_mask, cache, **options)
        return o, attentions, None
    attention_mask = _given_mask_or_ones_if_cached(
        layer, hidden_states, attention_mask, past_key_values
    )
    with torch.compiler.set_stance("force_eager"):
        return _path_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def forward_mla_with_window_in_cache(
    layer: MultiheadLatentAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **options: Any,
) -> LayerOutput:
    """`MultiheadLatentAttention.forward`; with a window the cache is cut to it, as its mask is."""
    if past_key_values is not None and len(past_key_values) > layer.layer_idx:
        several = hidden_states.shape[1] > 1
        layers: Any = past_key_values.layers
        layers[layer.layer_idx].window_size = None if several else layer.window_size
    attention_mask = _drop_needless_mask_after_cache_or_raise(
        layer, hidden_states, attention_mask, past_key_values
    )
    return _mla_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def forward_moba_after_clearing_window_size(
    layer: MoBA,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **options: Any,
) -> LayerOutput:
    """`MoBA.forward`; its window is only one of the cache: in one pass tokens see all earlier."""
    layer.window_size = None
    attention_mask = _drop_needless_mask_after_cache_or_raise(
        layer, hidden_states, attention_mask, past_key_values
    )
    return _moba_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def _drop_needless_mask_after_cache_or_raise(
    layer: _WindowedLayer,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    *,
    continues_padded_rows: bool = False,
) -> Tensor | None:
    """The mask of an attention layer, or None if it is needless for tokens after cached ones.

    With a mask these layers refuse several tokens, or take the keys of a cache that is cut to a
    window, where the first of the new tokens miss some.

    Args:
        layer: The attention layer; its `window_size` counts.
        hidden_states: [B, T, hidden size].
        attention_mask: [B, at least T], 0 for padding, or None.
        past_key_values: fla's cache, or None.
        continues_padded_rows: Whether the layer can have padding without a window.

    Raises:
        UserError: There is padding, and the layer cannot have it.
    """
    past = 0 if past_key_values is None else past_key_values.get_seq_length(layer.layer_idx)
    if past == 0 or hidden_states.shape[1] == 1 or attention_mask is None:
        return attention_mask
    if not has_padding(attention_mask):
        return None
    if continues_padded_rows and layer.window_size is None:
        return attention_mask
    raise UserError(
        f"{type(layer).__name__} cannot continue a padded batch with {hidden_states.shape[1]} "
        "tokens at once",
        where="attention_mask",
        remedy="give a batch with padding in one pass, not in pieces",
    )


def _wrap_forward_to_drop_mask_and_join_rows(
    forward: Callable[..., LayerOutput], *, continues_padded_rows: bool = False
) -> Callable[..., LayerOutput]:
    """The forward pass with the mask of `_drop_needless_mask_after_cache_or_raise`."""

    @wraps(forward)
    def forward_without_needless_mask_and_rows_joined(
        layer: _WindowedLayer,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *args: Any,
        **options: Any,
    ) -> LayerOutput:
        attention_mask = _drop_needless_mask_after_cache_or_raise(
            layer,
            hidden_states,
            attention_mask,
            past_key_values,
            continues_padded_rows=continues_padded_rows,
        )
        batch = hidden_states.shape[0]
        if past_key_values is None and batch > 1 and options.get("cu_seqlens") is not None:
            # documents that continue in the next row; fla's tables of angles end with a row
            row = hidden_states.flatten(0, 1).unsqueeze(0)
            o, scores, cache = forward(layer, row, None, None, *args, **options)
            return o.unflatten(1, (batch, -1)).squeeze(0), scores, cache
        return forward(layer, hidden_states, attention_mask, past_key_values, *args, **options)

    return forward_without_needless_mask_and_rows_joined


forward_attention = _wrap_forward_to_drop_mask_and_join_rows(Attention.forward)
forward_bit_attention = _wrap_forward_to_drop_mask_and_join_rows(BitAttention.forward)
forward_nsa = _wrap_forward_to_drop_mask_and_join_rows(NativeSparseAttention.forward)
forward_parallax = _wrap_forward_to_drop_mask_and_join_rows(
    Parallax.forward, continues_padded_rows=True
)
forward_rodimus_attention = _wrap_forward_to_drop_mask_and_join_rows(
    SlidingWindowSharedKeyAttention.forward
)


def forward_wall_rows_without_padding_if_cached(
    layer: WallAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **options: Any,
) -> LayerOutput:
    """`WallAttention.forward`, which with a cache refuses a mask and would keep padding as keys."""
    if past_key_values is None or attention_mask is None:
        return _wall_forward(layer, hidden_states, attention_mask, past_key_values, **options)

    def forward_tokens_without_mask(tokens: Tensor, cache: Cache | None) -> LayerOutput:
        return _wall_forward(layer, tokens, None, cache, **options)

    if not has_padding(attention_mask):
        return forward_tokens_without_mask(hidden_states, past_key_values)
    return forward_rows_without_padding(
        forward_tokens_without_mask, hidden_states, attention_mask, past_key_values, layer.layer_idx
    )


def _given_mask_or_ones_if_cached(
    layer: ForgettingAttention | PaTHAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
) -> Tensor | None:
    if attention_mask is not None or past_key_values is None:
        return attention_mask
    batch, length = hidden_states.shape[:2]
    length += past_key_values.get_seq_length(layer.layer_idx)
    return torch.ones(batch, length, dtype=torch.long, device=hidden_states.device)
