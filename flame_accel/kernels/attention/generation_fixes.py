"""Fixes the generation of three fla layers, on every device; what they compute stays theirs.

transformers, from some version on, drops an attention mask without padding before it generates.
Two of the layers decode only with a mask, the third only without. PaTH also compiles a line of its
decoding step anew in every process, with a compiler that the machine may not have.
"""

from typing import Any

import torch
from fla.layers.forgetting_attn import ForgettingAttention
from fla.layers.path_attn import PaTHAttention
from fla.layers.wall_attn import WallAttention
from torch import Tensor

_forgetting_forward = ForgettingAttention.forward
_path_forward = PaTHAttention.forward
_wall_forward = WallAttention.forward


def forward_forgetting_with_mask(
    layer: ForgettingAttention,
    hidden_states: Tensor,
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
    """`ForgettingAttention.forward` with a mask wherever there is a cache."""
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
        return _path_forward(layer, hidden_states, attention_mask, **options)
    attention_mask = _given_mask_or_ones_if_cached(
        layer, hidden_states, attention_mask, past_key_values
    )
    with torch.compiler.set_stance("force_eager"):
        return _path_forward(layer, hidden_states, attention_mask, past_key_values, **options)


def forward_wall_without_all_ones_mask(
    layer: WallAttention,
    hidden_states: Tensor,
    attention_mask: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
    """`WallAttention.forward` without a mask that hides nothing, which it refuses with a cache."""
    if past_key_values is not None and attention_mask is not None and attention_mask.all():
        attention_mask = None
    return _wall_forward(layer, hidden_states, attention_mask, past_key_values, **options)


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
