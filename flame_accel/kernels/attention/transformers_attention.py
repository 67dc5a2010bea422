"""Softmax attention of transformers' own models over packed documents, each by itself.

transformers packs by a mask of [T, T] for a row of T tokens, whose cost grows with the square of
the row. Here its models get an attention implementation that is told the boundaries and runs
`flash_attn_varlen_func`, whose cost grows with the documents. Rows that are not packed run on
transformers' own `sdpa`. Layers with a state are in `transformers_layers`.

The boundaries take the mask's way through a model: where transformers asks for a mask while
documents are packed, it is given their boundaries. Every layer hands that on to its attention, also
when it is recomputed in the backward pass.
"""

import sys
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from fla.utils import tensor_cache
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flame_accel.kernels.attention.flash_attention import flash_attn_varlen_func

PACKED_ATTENTION = "flame_accel_packed"
"""Name of the implementation for transformers."""
SDPA = "sdpa"

_boundaries: ContextVar[Tensor | None] = ContextVar("boundaries", default=None)


def runs_sdpa_and_supports_flash_attention(model: PreTrainedModel) -> bool:
    """Whether a model's layers tell their attention all that a mask would.

    Those do that may run on flash attention, which takes no mask, and that now run on `sdpa`, which
    their modeling module looks up by its name.
    """
    modules = (sys.modules[type(module).__module__] for module in model.modules())
    return (
        model.config._attn_implementation in (SDPA, PACKED_ATTENTION)
        and bool(model._supports_flash_attn)
        and any("ALL_ATTENTION_FUNCTIONS" in vars(module) for module in modules)
    )


def register_and_select_packed_attention(model: PreTrainedModel) -> None:
    """Makes a model's layers call `packed_attention`."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, boundaries_or_sdpa_mask)
    model.config._attn_implementation = PACKED_ATTENTION


def set_packed_boundaries(cu_seqlens: Tensor | None) -> None:
    """Sets the boundaries [N + 1] of the documents that models now get; None: not packed."""
    _boundaries.set(cu_seqlens)


def boundaries_or_sdpa_mask(
    *arguments: Any, local_size: int | None = None, **options: Any
) -> Tensor | None:
    """What a layer gets for a mask: the boundaries of documents if packed, else the mask of `sdpa`.

    Args:
        arguments: For the mask.
        local_size: How many keys a query sees, its own included; None is no limit.
        options: For the mask.

    Returns:
        If packed, boundaries [1, N + 1], or [1 + W, N + 1] if a query sees W keys: the same ones,
        as a view, since not every layer tells its attention of its window.
    """
    cu_seqlens = _boundaries.get()
    if cu_seqlens is None:
        make_mask = ALL_MASK_ATTENTION_FUNCTIONS[SDPA]
        return make_mask(*arguments, local_size=local_size, **options)
    return cu_seqlens.expand(1 + (local_size or 0), -1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Outputs [B, T, H, V] of `query` [B, H, T, D], `key` [B, G, T, D] and `value` [B, G, T, V].

    Args:
        module: The layer.
        query: Queries.
        key: Keys; H is a multiple of G.
        value: Values.
        attention_mask: Boundaries of packed documents, as `boundaries_or_sdpa_mask` gives them
            (then B = 1), or a mask for `sdpa`.
        dropout: Probability of dropping a weight.
        scaling: Of the scores; 1 / sqrt(D) if None.
        options: For `sdpa`.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    cu_seqlens = _cached_boundaries(attention_mask)
    # of keys before a query's own; -1 is no limit
    window = attention_mask.shape[0] - 2
    if dropout or options.get("position_bias") is not None:
        mask = packed_causal_mask(cu_seqlens, query.shape[2], window)
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **options
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    width, value_width = query.shape[-1], value.shape[-1]
    longest = query.shape[2]
    outputs = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        # the kernel wants values as wide as keys
        F.pad(value[0].transpose(0, 1), (0, width - value_width)),
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        softmax_scale=scaling,
        causal=True,
        window_size=(window, 0),
    )
    return outputs[..., :value_width].unsqueeze(0).to(value.dtype), None


@tensor_cache
def _cached_boundaries(expanded_boundaries: Tensor) -> Tensor:
    """The boundaries [N + 1]; one tensor for all layers, by which they share what they find out."""
    return expanded_boundaries[0]


def packed_causal_mask(cu_seqlens: Tensor, num_tokens: int, left_window: int) -> Tensor:
    """Which key [1, 1, T, T] a query sees: those of its document, not later, in its window.

    Args:
        cu_seqlens: Boundaries of the documents [N + 1].
        num_tokens: Number of tokens T.
        left_window: How many keys before its own; -1 is no limit.
    """
    position = torch.arange(num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:], position, right=True)
    distance = position[:, None] - position
    seen = (distance >= 0) & (document[:, None] == document)
    return (seen if left_window < 0 else seen & (distance <= left_window))[None, None]
