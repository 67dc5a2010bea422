"""MoM's routing of tokens to memories (Du et al., arXiv 2502.13685): two fixes of fla's layer.

Every memory is a gated delta rule over the tokens that are routed to it. fla's layer sorts tokens
by memory with a sort that is not stable (on CPUs), and in training its short convolution continues
from the last tokens of one memory or row to the first of the next; both let tokens see the future.
"""

from typing import Any, NamedTuple

import torch
from fla.layers.mom import MomAttention
from torch import Tensor

_fla_forward = MomAttention.forward


def forward_mom_with_convolution_per_memory(layer: MomAttention, *args: Any, **options: Any) -> Any:
    """`MomAttention.forward`, with the convolution per memory that fla has only in evaluation mode.

    The layer itself uses its `training` flag for nothing else; its submodules keep theirs.
    """
    training, layer.training = layer.training, False
    try:
        return _fla_forward(layer, *args, **options)
    finally:
        layer.training = training


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
