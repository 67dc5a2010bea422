"""Runs a layer of fla on each row of a padded batch without its padding, and gathers the caches.

For layers that would let padding into their state, or refuse a batch with padding. A row keeps the
positions that it has in the batch. Layers that leave padding out themselves do not need this.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fla.models.cache_utils import Cache, FLALayer
from torch import Tensor, nn

from flame_accel.config.errors import UserError

LayerOutput = tuple[Tensor, Tensor | None, Any]
"""Outputs [B, T, hidden size], attention weights or None, and the cache, as fla's layers do."""


def has_padding(attention_mask: Tensor | None, last_tokens: int | None = None) -> bool:
    """Whether a mask [B, T] hides any token, or any of the last ones."""
    if attention_mask is None:
        return False
    seen = attention_mask if last_tokens is None else attention_mask[:, -last_tokens:]
    return not bool(seen.all())


def check_every_row_has_token(attention_mask: Tensor) -> None:
    """Raises a `UserError` if a row of a mask [B, T] is all padding."""
    if not bool(attention_mask.any(1).all()):
        raise UserError(
            "a row of the batch has no token but padding",
            where="attention_mask",
            remedy="leave the row out; give a batch with padding in one pass, not in pieces",
        )


def check_no_padding_after_cached_tokens(
    layer: nn.Module, attention_mask: Tensor | None, new_tokens: int, *, has_past: bool
) -> None:
    """Raises a `UserError` if tokens that follow those of a cache contain padding.

    Args:
        layer: The layer that cannot leave it out.
        attention_mask: [B, at least `new_tokens`] or None.
        new_tokens: Number of tokens of this call.
        has_past: Whether the cache holds tokens already.
    """
    if has_past and has_padding(attention_mask, new_tokens):
        raise UserError(
            f"{type(layer).__name__} cannot continue cached tokens with a batch that has padding",
            where="attention_mask",
            remedy="give the whole padded batch in one pass, or continue every sequence alone",
        )


def forward_rows_without_padding(
    forward_row: Callable[[Tensor, Cache | None], LayerOutput],
    hidden_states: Tensor,
    attention_mask: Tensor,
    past_key_values: Cache | None,
    layer_index: int,
) -> LayerOutput:
    """Outputs [B, T, hidden size] with zeros for padding, and the cache with all rows' states.

    Args:
        forward_row: Takes the tokens of a row [1, length, hidden size] and its cache, or None.
        hidden_states: [B, T, hidden size].
        attention_mask: [B, at least T], 0 for padding; the last T are those of `hidden_states`.
        past_key_values: fla's cache, or None. It is updated.
        layer_index: Index of the layer in the cache.

    Raises:
        UserError: A row is all padding.
    """
    batch, tokens, _ = hidden_states.shape
    kept = attention_mask[:, -tokens:].bool()
    check_every_row_has_token(kept)
    outputs = torch.zeros_like(hidden_states)
    states = []
    for row in range(batch):
        cache = _copy_row_of_cache(past_key_values, attention_mask, row, tokens, layer_index)
        o, _, _ = forward_row(hidden_states[row : row + 1, kept[row]], cache)
        outputs = outputs.index_put(
            (torch.tensor(row, device=o.device), kept[row].nonzero().flatten()), o[0].to(outputs)
        )
        states.append(None if cache is None else cache[layer_index])
    if past_key_values is not None and states[0] is not None:
        _replace_cached_state(past_key_values, _concatenate_states(states), layer_index, tokens)
    return outputs, None, past_key_values


def _copy_row_of_cache(
    past_key_values: Cache | None,
    attention_mask: Tensor,
    row: int,
    new_tokens: int,
    layer_index: int,
) -> Cache | None:
    """A cache with the state of one layer and row; keys and values of padding are left out."""
    if past_key_values is None:
        return None
    before = attention_mask[row, :-new_tokens].bool()
    padding = int((~attention_mask[row, -new_tokens:].bool()).sum())
    past = past_key_values[layer_index] if len(past_key_values) > layer_index else None
    state = None
    if past is not None:
        state = {
            name: map_corresponding_tensors(
                lambda x, name=name: (
                    x[row : row + 1, before[-x.shape[1] :]]
                    if name == "attn_state"
                    else x[row : row + 1]
                ),
                value,
            )
            for name, value in past.items()
        }
    return new_cache_with_layer_state(
        layer_index, state, seen_tokens=past_key_values.get_seq_length(layer_index) + padding
    )


def new_cache_with_layer_state(
    layer_index: int, state: dict[str, Any] | None, *, seen_tokens: int = 0
) -> Cache:
    """A cache of fla that holds the state of one layer, and none of those before it.

    Args:
        layer_index: Index of the layer.
        state: What fla's caches hold for a layer, or None.
        seen_tokens: Tokens that the layer has seen, padding included.
    """
    cache: Any = Cache()
    cache.layers = [FLALayer() for _ in range(layer_index + 1)]
    cache.layers[layer_index].state = state
    cache.layers[layer_index]._seen_tokens = seen_tokens
    return cache


def _replace_cached_state(
    cache: Cache, state: dict[str, Any], layer_index: int, new_tokens: int
) -> None:
    """Replaces the state of a layer; its keys and values are not appended, but all there are."""
    attn_state = state.pop("attn_state")
    cache.update(**state, layer_idx=layer_index, offset=new_tokens)
    cache[layer_index]["attn_state"] = attn_state


def _concatenate_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: map_corresponding_tensors(
            partial(pad_and_concatenate_rows, pad_before=name == "attn_state"),
            *(state[name] for state in states),
        )
        for name in states[0]
    }


def pad_and_concatenate_rows(*rows: Tensor, pad_before: bool) -> Tensor:
    """[B, ...] of rows [1, ...]; a shorter second dimension is filled with zeros, where is told."""
    if rows[0].dim() > 1:
        longest = max(row.shape[1] for row in rows)
        missing = [longest - row.shape[1] for row in rows]
        rows = tuple(
            F.pad(row, (0, 0) * (row.dim() - 2) + ((n, 0) if pad_before else (0, n))) if n else row
            for row, n in zip(rows, missing, strict=True)
        )
    return torch.cat(rows)


def map_corresponding_tensors(function: Callable[..., Tensor], *states: Any) -> Any:
    """Applies a function to the tensors at the same place of equally built states.

    A state is a tensor, None, or a tuple, list or dataclass of states; so is the result.
    """
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*states)
    if isinstance(first, tuple | list):
        return type(first)(
            map_corresponding_tensors(function, *items) for items in zip(*states, strict=True)
        )
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        return type(first)(
            *(
                map_corresponding_tensors(function, *(getattr(state, name) for state in states))
                for name in names
            )
        )
    raise TypeError(f"a cache with a {type(first).__name__} cannot be split into rows")
