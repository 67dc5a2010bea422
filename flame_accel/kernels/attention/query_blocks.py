"""Causal attention of any formula in blocks of queries, without ever holding all scores.

A formula sees a block of queries and the keys up to its end. The backward pass evaluates it again,
block by block, so that memory grows linearly with the length.

Shape letters: B batch, T queries, S keys (the queries are the last T of S positions), H heads of
queries, G heads of keys and values, R = H / G, P = B * G problems, D channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

QueryBlockFormula = Callable[..., Tensor]
"""(block of each row tensor, columns up to its end, shared tensors) -> [P, queries, R, D]."""
GroupTimeHeads = Tensor
"""[B * groups, T, heads of a group, ...]."""
HeadTime = Tensor
"""[B * heads, T, ...]."""


class _TensorCounts(NamedTuple):
    """How many of the tensors belong to queries, and how many of the next to keys."""

    of_queries: int
    of_keys: int


class _BlockSlices(NamedTuple):
    """Positions of a block of queries, and of the keys up to its end."""

    queries: slice
    keys: slice


def map_query_blocks(
    formula: QueryBlockFormula,
    query_tensors: Sequence[Tensor],
    key_tensors: Sequence[Tensor],
    shared_tensors: Sequence[Tensor] = (),
    *,
    left_window: int = -1,
    block_size: int | None = None,
) -> Tensor:
    """Evaluates a formula for all queries.

    Args:
        formula: What to evaluate; any tensor function of autograd.
        query_tensors: What belongs to queries, [P, T, ...].
        key_tensors: What belongs to keys, [P, S, ...].
        shared_tensors: What every block needs whole.
        left_window: How many keys before its own a query sees, at most; a negative number is no
            limit. Keys out of every query's sight are left out; to hide the others is up to the
            formula.
        block_size: Queries of a block; None chooses by the number of keys.
    """
    num_rows, num_columns = query_tensors[0].shape[1], key_tensors[0].shape[1]
    ahead = num_columns - num_rows
    if block_size is None:
        block_size = min(128, max(16, (1 << 17) // num_columns))
    cuts = []
    for start in range(0, num_rows, block_size):
        end = min(start + block_size, num_rows)
        first = max(0, ahead + start - left_window) if left_window >= 0 else 0
        cuts.append(_BlockSlices(slice(start, end), slice(first, ahead + end)))
    return _RecomputedQueryBlocks.apply(
        formula,
        cuts,
        _TensorCounts(len(query_tensors), len(key_tensors)),
        *query_tensors,
        *key_tensors,
        *shared_tensors,
    )


class _RecomputedQueryBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        formula: QueryBlockFormula,
        cuts: list[_BlockSlices],
        counts: _TensorCounts,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.formula, ctx.cuts, ctx.counts = formula, cuts, counts
        ctx.save_for_backward(*tensors)
        return torch.cat([formula(*_slice_query_block(tensors, counts, cut)) for cut in cuts], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        sums = [torch.zeros_like(x) for x in tensors]
        for cut in ctx.cuts:
            pieces = [x.detach() for x in _slice_query_block(tensors, ctx.counts, cut)]
            leaves = [
                x.requires_grad_() for x, wanted in zip(pieces, needed, strict=True) if wanted
            ]
            with torch.enable_grad(), torch.autocast(grads[0].device.type, enabled=False):
                o = ctx.formula(*pieces)
            found = torch.autograd.grad(o, leaves, grads[0][:, cut.queries], materialize_grads=True)
            targets = _slice_query_block(sums, ctx.counts, cut)
            wanted = [x for x, wanted in zip(targets, needed, strict=True) if wanted]
            for target, grad in zip(wanted, found, strict=True):
                target += grad
        return (
            None, None, None,
            *(x if wanted else None for x, wanted in zip(sums, needed, strict=True)),
        )  # fmt: skip


def _slice_query_block(
    tensors: Sequence[Tensor], counts: _TensorCounts, cut: _BlockSlices
) -> list[Tensor]:
    num_rows, num_columns = counts.of_queries, counts.of_queries + counts.of_keys
    return [
        x[:, cut.queries] if i < num_rows else x[:, cut.keys] if i < num_columns else x
        for i, x in enumerate(tensors)
    ]


def fold_groups_into_fp32_batch(x: Tensor, groups: int) -> GroupTimeHeads:
    """[B, T, H, ...] -> contiguous [B * groups, T, H / groups, ...] in fp32 (fp64 stays)."""
    x = x if x.dtype == torch.float64 else x.float()
    return x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def fold_key_heads_into_fp32_batch(x: Tensor) -> HeadTime:
    """[B, S, G, ...] -> contiguous [P, S, ...] in fp32 (fp64 stays), each head a group."""
    return fold_groups_into_fp32_batch(x, x.shape[2]).squeeze(2)


def unfold_groups_from_batch(x: GroupTimeHeads, groups: int) -> Tensor:
    """Inverse of `fold_groups_into_fp32_batch`."""
    return x.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3)


def scale_or_default(scale: float | None, num_channels: int) -> float:
    """`scale`, or 1 / sqrt(D) if it is None."""
    return num_channels**-0.5 if scale is None else scale


def dot_products(q: Tensor, k: Tensor) -> Tensor:
    """[P, T, R, D] with [P, S, D] -> q . k [P, T, R, S]."""
    return (q.flatten(1, 2) @ k.mT).unflatten(1, q.shape[1:3])


def causally_masked_dot_products(q: Tensor, k: Tensor, left_window: int = -1) -> Tensor:
    """`dot_products`, and -inf where a key comes after the query or before its window."""
    hide = (
        hidden_key_mask(q.shape[1], k.shape[1], q.device, left_window)
        .expand(-1, q.shape[2], -1)
        .flatten(0, 1)
    )
    mask = torch.zeros(hide.shape, device=q.device).masked_fill_(hide, -torch.inf)
    return torch.baddbmm(mask, q.flatten(1, 2), k.mT).unflatten(1, q.shape[1:3])


def hidden_key_mask(
    num_queries: int, num_keys: int, device: torch.device, left_window: int = -1
) -> Tensor:
    """[T, 1, S] whether a key comes after a query's own, or more than `left_window` before it."""
    position = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None, None]
    column = torch.arange(num_keys, device=device)
    later = column > position
    return later | (column < position - left_window) if left_window >= 0 else later


def softmax_weighted_sum(scores: Tensor, v: Tensor, *sink_logits: Tensor) -> Tensor:
    """[P, T, R, S] and [P, S, D] -> softmax(scores) v [P, T, R, D].

    At most one tensor of sinks, as `expand_sink_logits_to_optional_list` returns it.
    """
    if sink_logits:
        # a key without a value
        scores = torch.cat([scores, sink_logits[0].expand(-1, scores.shape[1], -1, -1)], -1)
    return dot_products(scores.softmax(-1)[..., : v.shape[1]], v.mT)


def expand_sink_logits_to_optional_list(
    sink_logits: Tensor | None, batch: int, groups: int
) -> list[Tensor]:
    """Logits of the heads' sinks [H] -> [[P, 1, R, 1]], an empty list if there are none."""
    if sink_logits is None:
        return []
    return [sink_logits.float().view(groups, 1, -1, 1).repeat(batch, 1, 1, 1)]
