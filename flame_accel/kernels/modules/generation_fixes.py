"""Fixes the generation of fla's attention layers, on every device; what they compute stays theirs.

transformers, from some version on, drops an attention mask without padding before it generates.
Two of the layers decode only with a mask, the third only without. PaTH also compiles a line of its
decoding step anew in every process, with a compiler that the machine may not have, and takes no
padding without a cache. Some layers treat a window in their cache otherwise than in one pass.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from fla.layers.attn import Attention
from fla.layers.bitattn import BitAttention
from fla.layers.forgetting_attn import ForgettingAttention
from fla.layers.mla import MultiheadLatentAttention
from fla.layers.moba import MoBA
from fla.layers.parallax import Parallax
from fla.layers.path_attn import PaTHAttention
from fla.layers.rodimus import SlidingWindowSharedKeyAttention
from fla.layers.wall_attn import WallAttention
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.padded_rows import forward_rows_without_padding, has_padding

_forgetting_forward = ForgettingAttention.forward
_mla_forward = MultiheadLatentAttention.forward
_moba_forward = MoBA.forward
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
    """`MoBA.forward`; its window is only one of the cache: in one pass tokens see all earlier."""
    layer.window_size = None
    return _moba_forward(layer, *args, **options)


def _continue_windows_without_padding(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of an attention layer with a window, for several tokens after cached ones.

    With a mask these layers take the keys of the cut cache alone, where the first of the new tokens
    miss some. Without padding no mask is needed, and with padding the call raises a `UserError`.
    """

    @wraps(forward)
    def continue_without_padding(
        layer: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Any = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        past = 0 if past_key_values is None else past_key_values.get_seq_length(layer.layer_idx)
        several = past > 0 and hidden_states.shape[1] > 1
        if layer.window_size is not None and several and attention_mask is not None:
            if has_padding(attention_mask):
                raise UserError(
                    f"{type(layer).__name__} with a window cannot continue a padded batch with "
                    f"{hidden_states.shape[1]} tokens",
                    where="attention_mask",
                    remedy="give a batch with padding in one pass, not in pieces",
                )
            attention_mask = None
        return forward(layer, hidden_states, attention_mask, past_key_values, *args, **options)

    return continue_without_padding


forward_attention = _continue_windows_without_padding(Attention.forward)
forward_bit_attention = _continue_windows_without_padding(BitAttention.forward)
forward_parallax = _continue_windows_without_padding(Parallax.forward)
forward_rodimus_attention = _continue_windows_without_padding(
    SlidingWindowSharedKeyAttention.forward
)


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
