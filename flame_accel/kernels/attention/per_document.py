"""Runs a causal function of fixed rows over the documents of a packed row; no arithmetic.

Documents are sorted by length, rounded up to a multiple of a sixteenth to an eighth of it, and all
of one rounded length are one batch: few calls for many documents, and little padding. The padding
follows a document, where a causal function does not look. Which document gets which length depends
on nothing but its own, so that it computes the same bits whatever its neighbours hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CausalBatchFunction = Callable[..., Tensor]
"""Takes tensors [N, L, ...] or None, returns [N, L, ...]; no token depends on later ones."""

SMALLEST = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _PaddedDocumentBatches:
    batches: tuple[tuple[int, int], ...]
    """Documents and slots of each document, batch by batch."""
    token_of_slot: Tensor
    """The last one of a document for its padding."""
    slot_of_token: Tensor
    padding: Tensor
    """Slots that hold no token."""


def map_rows_or_packed_documents(
    causal_function: CausalBatchFunction, cu_seqlens: Tensor | None, *tensors: Tensor | None
) -> Tensor:
    """The function of the rows, or of every document by itself if they are packed in one row.

    Documents go through the function in batches of similar length, padded at the end.

    Args:
        causal_function: Takes the tensors as [N, L, ...], returns [N, L, ...]; no token may
            depend on later ones.
        cu_seqlens: Boundaries of the documents [N + 1], the last one the number of tokens, with
            B = 1; None if rows hold one document each.
        tensors: [B, T, ...], or None, which is passed on.

    Returns:
        [B, T, ...].
    """
    if cu_seqlens is None:
        return causal_function(*tensors)
    layout = _batch_documents_by_padded_length(tuple(cu_seqlens.tolist()), cu_seqlens.device)
    sizes = [documents * slots for documents, slots in layout.batches]
    batches = [
        [None] * len(sizes)
        if x is None
        else _GatherRows.apply(
            x.squeeze(0), layout.token_of_slot, layout.slot_of_token, None
        ).split(sizes)
        for x in tensors
    ]
    outputs = [
        causal_function(*(None if x is None else x.unflatten(0, shape) for x in batch)).flatten(
            0, 1
        )
        for shape, *batch in zip(layout.batches, *batches, strict=True)
    ]
    return _GatherRows.apply(
        torch.cat(outputs), layout.slot_of_token, layout.token_of_slot, layout.padding
    ).unsqueeze(0)


def _round_up_document_length(length: int) -> int:
    step = max(SMALLEST, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


@lru_cache(maxsize=8)
def _batch_documents_by_padded_length(
    boundaries: tuple[int, ...], device: torch.device
) -> _PaddedDocumentBatches:
    groups: dict[int, list[int]] = {}
    for document, (begin, end) in enumerate(pairwise(boundaries)):
        if end > begin:
            groups.setdefault(_round_up_document_length(end - begin), []).append(document)
    edges = torch.tensor(boundaries)
    tokens, pads = [], []
    for slots, documents in groups.items():
        end = edges[1:][documents, None]
        token = edges[:-1][documents, None] + torch.arange(slots)
        pads.append((token >= end).flatten())
        tokens.append(torch.minimum(token, end - 1).flatten())
    token, padded = torch.cat(tokens), torch.cat(pads)
    held = (~padded).nonzero().flatten()
    return _PaddedDocumentBatches(
        batches=tuple((len(documents), slots) for slots, documents in groups.items()),
        token_of_slot=token.to(device),
        slot_of_token=torch.empty(boundaries[-1], dtype=torch.long)
        .index_copy_(0, token[held], held)
        .to(device),
        padding=padded.nonzero().flatten().to(device),
    )


class _GatherRows(torch.autograd.Function):
    """`x[index]`; its gradient is gathered too, with zeros at `unused`, instead of added up."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, unused: Tensor | None
    ) -> Tensor:
        ctx.inverse, ctx.unused = inverse, unused
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].index_select(0, ctx.inverse)
        if ctx.unused is not None:
            grad.index_fill_(0, ctx.unused, 0)
        return grad, None, None, None
