"""MoM's routing of tokens to memories (Du et al., arXiv 2502.13685): fixes of fla's layer.

Every memory is a gated delta rule over the tokens that are routed to it. fla's layer sorts tokens
by memory with a sort that is not stable (on CPUs), and in training its short convolution continues
from the last tokens of one memory or row to the first of the next; both let tokens see the future.
It caches states memory by memory, so that a beam search would take those of other rows; here the
batch is their first dimension. It would also continue a cache wrongly with several tokens at once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from fla.layers.mom import MomAttention
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.cache_utils import Cache
from torch import Tensor

from flame_accel.kernels.modules.padded_rows import (
    check_no_padding_after_cached_tokens,
    new_cache_with_layer_state,
)

_fla_forward: Any = MomAttention.forward


def forward_mom(
    layer: MomAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None, Cache | None, Tensor]:
    """`MomAttention.forward`: outputs [B, T, hidden size], None, the cache, logits of the router.

    Args:
        layer: fla's `MomAttention`.
        hidden_states: [B, T, hidden size]; tokens that continue a cache go one after the other.
        attention_mask: [B, at least T], 0 for padding; the last T count.
        past_key_values: fla's cache, whose states have the batch as their first dimension, or None.
        use_cache: Whether to update the cache.
        output_attentions: Without effect.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: Without effect.

    Raises:
        UserError: Padding follows the tokens of the cache.
    """
    last_state = get_layer_cache(layer, past_key_values)
    tokens = hidden_states.shape[1]
    check_no_padding_after_cached_tokens(
        layer, attention_mask, tokens, has_past=last_state is not None
    )
    if last_state is not None and tokens > 1:
        steps = [
            forward_mom(layer, token, None, past_key_values, use_cache)
            for token in hidden_states.split(1, 1)
        ]
        router_logits = torch.cat([step[3].unsqueeze(1) for step in steps], 1)
        o = torch.cat([step[0] for step in steps], 1)
        return o, None, past_key_values, router_logits.flatten(0, 1)
    if cu_seqlens is not None:
        # fla gives each document a row, and a row must hold a token
        cu_seqlens = cu_seqlens.unique_consecutive()
    cache = None
    if past_key_values is not None:
        cache = new_cache_with_layer_state(
            layer.layer_idx,
            None if last_state is None else _map_routed_memory_states(_to_memory_first, last_state),
        )
    # the layer itself uses this flag only to choose the convolution; its submodules keep theirs
    training, layer.training = layer.training, False
    try:
        o, _, _, router_logits = _fla_forward(
            layer, hidden_states, attention_mask, cache, use_cache, output_attentions,
            cu_seqlens=cu_seqlens, **options,
        )  # fmt: skip
    finally:
        layer.training = training
    if cache is not None and use_cache:
        state = _map_routed_memory_states(
            lambda x: x.unflatten(0, (layer.num_memories, -1)).transpose(0, 1),
            cache[layer.layer_idx],
        )
        update_layer_cache(layer, past_key_values, **state, offset=tokens)
    return o, None, past_key_values, router_logits


def _to_memory_first(x: Tensor) -> Tensor:
    """[B, E, ...] -> [E B, ...]."""
    return x.transpose(0, 1).flatten(0, 1)


def _map_routed_memory_states(
    function: Callable[[Tensor], Tensor], state: Mapping[str, Any]
) -> dict[str, Any]:
    """The states of a layer, with those of the routed memories mapped; the shared memory's stay.

    Both are lists [routed, shared] of states, or [routed] without a shared memory.
    """

    def map_routed_keep_shared(routed_then_shared: list[Tensor | None]) -> list[Tensor | None]:
        routed, *shared = routed_then_shared
        return [None if routed is None else function(routed), *shared]

    recurrent, convolutions = state["recurrent_state"], state["conv_state"]
    return {
        "recurrent_state": map_routed_keep_shared(recurrent),
        "conv_state": None
        if convolutions is None
        else tuple(map(map_routed_keep_shared, convolutions)),
        "attn_state": None,
        "ffn_state": None,
    }


class TokensByMemory(NamedTuple):
    """Tokens sorted by the memory that they are routed to; shape letters as in `transform`."""

    tokens: Tensor
    """[E, B, L, D]"""
    index: Tensor
    """[B * E, L] of each token in the sorted choices."""
    argsort: Tensor
    """[B * T * S] of the choices."""
    max_tokens: int
    """L"""
    mask: Tensor
    """[B * E, L] slots that hold a token."""
    mask_by_memory: Tensor
    """The same as [E, B, L]."""


def transform(
    x: Tensor,
    routing_mask: Tensor,
    num_memories: int,
    selected_memories: Tensor,
    attention_mask: Tensor | None,
) -> TokensByMemory:
    """Gathers the tokens of every memory, in their order; in fla under the same name.

    Shape letters: B batch, T tokens, D width, E memories, S memories per token, L largest number of
    tokens of a memory.

    Args:
        x: [B, T, D].
        routing_mask: [B, T, E]; without effect, and it may lack memories whose weight is 0.
        num_memories: E.
        selected_memories: [B, T, S].
        attention_mask: [B, at least T] bool, False for padding, or None; the last T count.

    Returns:
        As fla's function, which returns a bare tuple.
    """
    batch, tokens, num_choices = selected_memories.shape
    rows = torch.arange(batch, device=x.device)[:, None, None]
    # padding sorts after the memories of all rows
    memory = rows * num_memories + selected_memories
    if attention_mask is not None:
        is_padding = ~attention_mask[:, -tokens:].unsqueeze(-1)
        memory = memory.masked_fill(is_padding, batch * num_memories)
    order = memory.flatten().argsort(stable=True)
    counts = memory.flatten().bincount(minlength=batch * num_memories)[: batch * num_memories]
    max_count = int(counts.max())
    slot = torch.arange(max_count, device=x.device)
    mask = slot < counts.unsqueeze(-1)
    index = ((counts.cumsum(0) - counts).unsqueeze(-1) + slot).masked_fill(~mask, 0)
    x_by_memory = x.flatten(0, 1)[order[index] // num_choices].unflatten(0, (batch, num_memories))
    mask_by_memory = mask.unflatten(0, (batch, num_memories)).transpose(0, 1)
    return TokensByMemory(
        x_by_memory.transpose(0, 1), index, order, max_count, mask, mask_by_memory
    )
