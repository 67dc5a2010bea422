"""Fixes the generation of fla's attention layers, on every device; what they compute stays theirs.

transformers, from some version on, drops an attention mask without padding before it generates.
Two of the layers decode only with a mask, the third only without. PaTH also compiles a line of its
decoding step anew in every process, with a compiler that the machine may not have, and takes no
padding without a cache. Some layers treat a sliding window in their cache otherwise than in one pass.
"""

from typing import Any

import torch
from fla.layers.forgetting_attn import ForgettingAttention
from fla.layers.mla import MultiheadLatentAttention
from fla.layers.moba import MoBA
from fla.layers.parallax import Parallax
from fla.layers.path_attn import PaTHAttention
from fla.layers.wall_attn import WallAttention
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.padded_rows import forward_rows_without_padding, has_padding

_forgetting_forward = ForgettingAttention.forward
_mla_forward = MultiheadLatentAttention.forward
_moba_forward = MoBA.forward
_parallax_forward = Parallax.forward
_path_forward = PaTHAttention.forward
_wall_forward = WallAttention.forward


def forward_forgetting_with_mask(
    layer: ForgettingAttention,
    hidden_states: Tensor,
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
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
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
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
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
    """`MultiheadLatentAttention.forward`; with a window the cache is cut to it, as its mask is."""
    if past_key_values is not None and len(past_key_values) > layer.layer_idx:
        several = hidden_states.shape[1] > 1
        past_key_values.layers[layer.layer_idx].window_size = None if several else layer.window_size
    return _mla_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def forward_moba_without_window_in_cache(layer: MoBA, *args: Any, **options: Any) -> Any:
    """`MoBA.forward`; its window is only one of the cache: in one pass tokens see all earlier ones."""
    layer.window_size = None
    return _moba_forward(layer, *args, **options)


def forward_parallax_with_whole_window(
    layer: Parallax,
    hidden_states: Tensor,
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
    """`Parallax.forward`.

    Raises:
        UserError: Several tokens follow those of the cache, with a window and padding; fla's layer
            would have dropped keys of the first of them.
    """
    windowed = layer.window_size is not None and hidden_states.shape[1] > 1
    if windowed and past_key_values is not None and has_padding(attention_mask):
        if past_key_values.get_seq_length(layer.layer_idx) > 0:
            raise UserError(
                "Parallax with a window cannot continue a padded batch with several tokens",
                where="attention_mask",
                remedy="give a batch with padding in one pass, not in chunks",
            )
    return _parallax_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def forward_wall_without_padding(
    layer: WallAttention,
    hidden_states: Tensor,
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
    """`WallAttention.forward`, which with a cache refuses a mask and would keep padding as keys."""
    if past_key_values is None or attention_mask is None:
        return _wall_forward(layer, hidden_states, attention_mask, past_key_values, **options)

    def forward(tokens: Tensor, cache: Any) -> Any:
        return _wall_forward(layer, tokens, None, cache, **options)

    if not has_padding(attention_mask):
        return forward(hidden_states, past_key_values)
    return forward_rows_without_padding(
        forward, hidden_states, attention_mask, past_key_values, layer.layer_idx
    )


def _given_mask_or_ones_if_cached(
    layer: ForgettingAttention | PaTHAttention,
    hidden_states: Tensor,
    attention_mask: Any,
    past_key_values: Any,
) -> Any:
    if attention_mask is not None or past_key_values is None:
        return attention_mask
    batch, length = hidden_states.shape[:2]
    length += past_key_values.get_seq_length(layer.layer_idx)
    return torch.ones(batch, length, dtype=torch.long, device=hidden_states.device)
