"""Layers of fla with modes that compute the same, run in the one that all of their features have.

GLA and HGRN2 drop `cu_seqlens` on their way to `fused_chunk`, which fla no longer has, so that
documents and padding would mix; retention returns no state from `parallel`, so that a cache would
stay empty. The mode `chunk` has the same formula.
"""

from typing import Any

from fla.layers.gla import GatedLinearAttention
from fla.layers.hgrn2 import HGRN2Attention
from fla.layers.multiscale_retention import MultiScaleRetention
from torch import Tensor

from flame_accel.kernels.modules.padded_rows import check_no_padding_after_cached_tokens

_gla_forward = GatedLinearAttention.forward
_hgrn2_forward = HGRN2Attention.forward
_retention_forward = MultiScaleRetention.forward


def forward_gla(layer: GatedLinearAttention, *args: Any, **options: Any) -> Any:
    """`GatedLinearAttention.forward`, in the mode `chunk` where `fused_chunk` is configured."""
    if layer.mode == "fused_chunk":
        layer.mode = "chunk"
    return _gla_forward(layer, *args, **options)


def forward_hgrn2(layer: HGRN2Attention, *args: Any, **options: Any) -> Any:
    """`HGRN2Attention.forward`, in the mode `chunk` where `fused_chunk` is configured."""
    if layer.mode == "fused_chunk":
        layer.mode = "chunk"
    return _hgrn2_forward(layer, *args, **options)


def forward_retention(
    layer: MultiScaleRetention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **options: Any,
) -> Any:
    """`MultiScaleRetention.forward`, in the mode `chunk` where `parallel` is configured.

    Raises:
        UserError: Padding among tokens that follow those of the cache; fla's layer would rotate the
            tokens of such a row by positions of other tokens.
    """
    if layer.mode == "parallel":
        layer.mode = "chunk"
    check_no_padding_after_cached_tokens(
        layer,
        attention_mask,
        hidden_states.shape[1],
        has_past=past_key_values is not None
        and past_key_values.get_seq_length(layer.layer_idx) > 0,
    )
    return _retention_forward(layer, hidden_states, attention_mask, past_key_values, **options)
