"""How MoM deals tokens out to its memories (Du et al., arXiv 2502.13685), mended in two places.

Every memory is a gated delta rule over the tokens that chose it. fla's layer sorts tokens by memory
with a sort that does not keep their order (on CPUs), and in training its short convolution runs on
from the last tokens of one memory or row to the first of the next; both let tokens see the future.
"""

from typing import Any

import torch
from fla.layers.mom import MomAttention
from torch import Tensor

_forward = MomAttention.forward


def forward_mom(layer: MomAttention, *args: Any, **options: Any) -> Any:
    """`MomAttention.forward`, with the convolution per memory that fla keeps for evaluation.

    The layer itself looks at `training` for nothing else; its submodules keep theirs.
    """
    training, layer.training = layer.training, False
    try:
        return _forward(layer, *args, **options)
    finally:
        layer.training = training


def transform(
    x: Tensor,
    routing_mask: Tensor,
    num_memories: int,
    selected_memories: Tensor,
    attention_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, int, Tensor, Tensor]:
    """Gathers the tokens of every memory, in their order.

    Shape letters: B batch, T tokens, D channels, E memories, S memories per token, L most tokens of
    a memory.

    Args:
        x: [B, T, D].
        routing_mask: [B, T, E]; not needed here, and it may lack memories whose weight is 0.
        num_memories: E.
        selected_memories: [B, T, S].
        attention_mask: [B, at least T] bool, False for padding, or None; its last T columns count.

    Returns:
        Tokens by memory [E, B, L, D]; for each of them its place among the sorted [B * E, L]; the
        sorted choices' places among all [B * T * S]; L; which of the L places hold a token
        [B * E, L], and the same as [E, B, L].
    """
    batch, tokens, num_choices = selected_memories.shape
    rows = torch.arange(batch, device=x.device)[:, None, None]
    group = rows * num_memories + selected_memories
    if attention_mask is not None:
        padding = ~attention_mask[:, -tokens:].unsqueeze(-1)
        group = group.masked_fill(padding, batch * num_memories)
    order = group.flatten().argsort(stable=True)
    counts = group.flatten().bincount(minlength=batch * num_memories)[: batch * num_memories]
    longest = int(counts.max())
    place = torch.arange(longest, device=x.device)
    held = place < counts.unsqueeze(-1)
    index = ((counts.cumsum(0) - counts).unsqueeze(-1) + place).masked_fill(~held, 0)
    dealt = x.flatten(0, 1)[order[index] // num_choices].unflatten(0, (batch, num_memories))
    by_memory = held.unflatten(0, (batch, num_memories)).transpose(0, 1)
    return dealt.transpose(0, 1), index, order, longest, held, by_memory
