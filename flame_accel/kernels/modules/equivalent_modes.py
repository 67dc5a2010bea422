"""Layers of fla with modes that compute the same, run in the one that all of their features have.

GLA and HGRN2 drop `cu_seqlens` on their way to `fused_chunk`, which fla no longer has, so that
documents and padding would mix; retention returns no state from `parallel`, so that a cache would
stay empty. The mode `chunk` has the same formula.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from fla.layers.gla import GatedLinearAttention
from fla.layers.hgrn2 import HGRN2Attention
from fla.layers.multiscale_retention import MultiScaleRetention
from fla.layers.utils import get_layer_cache
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.kernels.modules.padded_rows import (
    LayerOutput,
    check_no_padding_after_cached_tokens,
)

INNER_FORWARD = "_forward_of_fla"
"""Attribute of a layer's class with the forward pass to call in place of fla's own: tensor
parallelism changes what that calls."""
_retention_forward = MultiScaleRetention.forward


def _wrap_to_replace_fused_chunk_mode_permanently(
    forward: Callable[..., LayerOutput],
) -> Callable[..., LayerOutput]:
    """The forward pass of a layer, in the mode `chunk` where `fused_chunk` is configured."""

    @wraps(forward)
    def forward_replacing_fused_chunk_mode_permanently(
        layer: GatedLinearAttention | HGRN2Attention, *args: Any, **options: Any
    ) -> LayerOutput:
        if layer.mode == "fused_chunk":
            layer.mode = "chunk"
        return getattr(type(layer), INNER_FORWARD, forward)(layer, *args, **options)

    return forward_replacing_fused_chunk_mode_permanently


forward_gla_in_chunk_mode = _wrap_to_replace_fused_chunk_mode_permanently(
    GatedLinearAttention.forward
)
forward_hgrn2_in_chunk_mode = _wrap_to_replace_fused_chunk_mode_permanently(HGRN2Attention.forward)


@wraps(_retention_forward)
def forward_retention_replacing_parallel_mode_permanently(
    layer: MultiScaleRetention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **options: Any,
) -> LayerOutput:
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
        has_past=get_layer_cache(layer, past_key_values) is not None,
    )
    forward = getattr(type(layer), INNER_FORWARD, _retention_forward)
    return forward(layer, hidden_states, attention_mask, past_key_values, **options)
