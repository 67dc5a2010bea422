"""Boundaries of packed documents that the host knows, so that no operator asks the device for them.

fla's operators cut documents into chunks and need the number of chunks on the host, for the size of
a grid or of a tensor. They read it from `cu_seqlens` on the device, once per layer or per step, and
the host waits until the device has caught up. A loader has the boundaries on the host anyway: it
leaves them here (`remember_boundaries`), under the tensor on the device.

The functions that replace fla's compute what they compute, to the bit. They fall back on fla's own
where the boundaries were not left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, slots=True)
class KnownBoundaries:
    """What the host knows of a tensor of boundaries."""

    numbers: tuple[int, ...]
    computed: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """What was computed from them, on the device, for all layers: by function and chunk size."""

    def count_chunks(self, chunk_size: int) -> int:
        """Number of chunks if each document is cut into chunks of its own."""
        lengths = (end - begin for begin, end in pairwise(self.numbers))
        return sum(-(-length // chunk_size) for length in lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max((end - begin for begin, end in pairwise(self.numbers)), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return self.numbers[-1] - self.numbers[0]


@dataclass(frozen=True, slots=True)
class PaddedBoundaries:
    """What holds for every batch whose boundaries a tensor may get; some documents are empty.

    A CUDA graph works on the same tensors at each replay, so that nothing may have a size that
    depends on the boundaries.
    """

    tokens: int
    """The last boundary."""
    documents: int
    """Number of documents; the last one is empty, and chunks that no document has are its own."""
    longest: int
    """At least the tokens of the longest document."""
    computed: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def count_chunks(self, chunk_size: int) -> int:
        """The largest number of chunks: each document but the last may have an incomplete one."""
        return self.tokens // chunk_size + self.documents


_KNOWN: Any = WeakTensorKeyDictionary()


def remember_boundaries(cu_seqlens: Tensor, boundaries: Sequence[int]) -> None:
    """Leaves on the host what a tensor on a device holds, for as long as the tensor lives.

    Args:
        cu_seqlens: Boundaries of documents [N + 1]; must not change afterwards.
        boundaries: The same numbers.
    """
    _KNOWN[cu_seqlens] = KnownBoundaries(tuple(boundaries))


def view_padded_boundaries(cu_seqlens: Tensor, *, tokens: int, longest: int) -> Tensor:
    """A view of boundaries that are going to change, of which only the sizes are known.

    Each view has indices of its own, computed from what the tensor holds at the time.

    Args:
        cu_seqlens: [N + 1] on the device; the last two are equal.
        tokens: The last boundary.
        longest: No document will have more tokens.
    """
    view = cu_seqlens.view_as(cu_seqlens)
    _KNOWN[view] = PaddedBoundaries(tokens, len(cu_seqlens) - 1, longest)
    return view


def find_known_boundaries(cu_seqlens: Tensor) -> KnownBoundaries | PaddedBoundaries | None:
    """What the host knows of a tensor of boundaries; None if nothing was left."""
    return _KNOWN.get(cu_seqlens)


def longest_document_remembering_boundaries(cu_seqlens: Tensor) -> int:
    """Tokens of the longest document; waits for the device if the host does not know."""
    known = find_known_boundaries(cu_seqlens)
    if known is None:
        known = KnownBoundaries(tuple(cu_seqlens.tolist()))
        _KNOWN[cu_seqlens] = known
    return known.longest


def wrap_prepare_chunk_indices(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Never waits, unlike fla's `prepare_chunk_indices`: document and chunk [chunks, 2]."""

    def prepare_chunk_indices(
        cu_seqlens: Tensor, chunk_size: int, cu_seqlens_cpu: Tensor | None = None
    ) -> Tensor:
        known = find_known_boundaries(cu_seqlens)
        if known is None:
            return original(cu_seqlens, chunk_size, cu_seqlens_cpu=cu_seqlens_cpu)
        return document_and_number_of_chunks(known, cu_seqlens, chunk_size)

    return prepare_chunk_indices


def document_and_number_of_chunks(
    known: KnownBoundaries | PaddedBoundaries, cu_seqlens: Tensor, chunk_size: int
) -> Tensor:
    """Document, and number within it, of each chunk [chunks, 2]; computed once for all layers."""
    key = ("chunk_indices", chunk_size)
    if key not in known.computed:
        counts = _count_chunks_of_documents(cu_seqlens, chunk_size)
        padded = isinstance(known, PaddedBoundaries)
        number = _segment_and_number_per_padded_item if padded else _segment_and_number_per_item
        known.computed[key] = number(counts, known.count_chunks(chunk_size))
    return known.computed[key]


def first_chunks_of_documents(
    known: KnownBoundaries | PaddedBoundaries, cu_seqlens: Tensor, chunk_size: int
) -> Tensor:
    """Number of chunks before each document, and of all [N + 1]; computed once for all layers."""
    key = ("first_chunks", chunk_size)
    if key not in known.computed:
        ends = _count_chunks_of_documents(cu_seqlens, chunk_size).cumsum(0)
        known.computed[key] = F.pad(ends, (1, 0)).to(cu_seqlens.dtype)
    return known.computed[key]


def _count_chunks_of_documents(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    return (cu_seqlens.diff() + (chunk_size - 1)).div(chunk_size, rounding_mode="floor")


def wrap_prepare_position_ids(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Never waits, unlike fla's `prepare_position_ids`: positions of tokens in their documents."""

    def prepare_position_ids(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
        known = find_known_boundaries(cu_seqlens)
        if known is None:
            return original(cu_seqlens, cu_seqlens_cpu)
        key = ("position_ids", 1)
        if key not in known.computed:
            numbered = _segment_and_number_per_item(cu_seqlens.diff(), known.tokens)
            known.computed[key] = numbered[:, 1].contiguous()
        return known.computed[key]

    return prepare_position_ids


def wrap_get_max_num_splits(original: Callable[..., int]) -> Callable[..., int]:
    """Never waits, unlike fla's `get_max_num_splits`: the chunks of the longest document."""

    def get_max_num_splits(
        cu_seqlens: Tensor, chunk_size: int, cu_seqlens_cpu: Tensor | None = None
    ) -> int:
        known = find_known_boundaries(cu_seqlens)
        if known is None:
            return original(cu_seqlens, chunk_size, cu_seqlens_cpu)
        return -(-known.longest // chunk_size)

    return get_max_num_splits


def wrap_prepare_maxlens(original: Callable[[Tensor], int]) -> Callable[[Tensor], int]:
    """Never waits, unlike the `prepare_maxlens` of fla's token shift: the longest document."""

    def prepare_maxlens(cu_seqlens: Tensor) -> int:
        known = find_known_boundaries(cu_seqlens)
        return original(cu_seqlens) if known is None else known.longest

    return prepare_maxlens


def _segment_and_number_per_item(counts: Tensor, total: int) -> Tensor:
    """Segment, and number within the segment, of each of `total` items: [total, 2].

    Args:
        counts: Items of each segment.
        total: Their sum, which the device would have to be asked for.
    """
    segments = torch.arange(counts.numel(), device=counts.device, dtype=counts.dtype)
    segment = torch.repeat_interleave(segments, counts, output_size=total)
    starts = F.pad(counts.cumsum(0), (1, 0))[:-1]
    items = torch.arange(total, device=counts.device, dtype=counts.dtype)
    return torch.stack([segment, items - starts[segment]], 1).to(counts.dtype)


def _segment_and_number_per_padded_item(counts: Tensor, total: int) -> Tensor:
    """As `_segment_and_number_per_item` of up to `total` items; the rest is 0 of the last segment.

    That segment has no items: kernels find nothing in its chunk to load or to store.
    """
    ends = counts.cumsum(0)
    items = torch.arange(total, device=counts.device, dtype=ends.dtype)
    segment = torch.searchsorted(ends, items, right=True)
    inside = segment < counts.numel()
    segment = segment.clamp(max=counts.numel() - 1)
    item = (items - (ends - counts)[segment]) * inside
    return torch.stack([segment, item], 1).to(counts.dtype)


def has_known_boundaries(*args: Any, cu_seqlens: Tensor | None = None, **kwargs: Any) -> bool:
    """Whether a call of one of fla's functions names documents that the host knows."""
    return cu_seqlens is not None and find_known_boundaries(cu_seqlens) is not None
