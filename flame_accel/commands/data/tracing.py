"""Which token of which document stands where in the rows of a lane, for every way of packing.

How a lane fills its rows depends on the lengths and targets of documents, not on their tokens. So
its documents are given to it with serial numbers in place of tokens, and the numbers in the rows
that come back say where each token is from: no boundary is guessed from token ids.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.row_packing import Lane
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.loading.workers import Stream
from flame_accel.data.stages import DocumentReader

PADDING = -1


class Piece(NamedTuple):
    """Tokens of one document, or of padding, that follow each other in a row."""

    start: int
    """Place of the first in the row."""
    is_segment: bool
    """Whether state and targets stop before it."""
    tokens: np.ndarray
    """int32 [n]."""
    targets: np.ndarray
    """bool [n], which of them the loss is for in this row."""
    document: int | None = None
    """Which of the lane's documents: number of its first token among all that the lane has read;
    None: padding."""
    source: int = 0
    """Which source it is of."""
    offset: int = 0
    """Place of the first in the document."""
    length: int = 0
    """Tokens of the whole document."""

    @property
    def end(self) -> int:
        """Place in the document behind the last."""
        return self.offset + len(self.tokens)


class TracedRow(NamedTuple):
    """A row and what it consists of."""

    lane: int
    tokens: np.ndarray
    """int32 [T], as a run gets them."""
    targets: np.ndarray
    """bool [T], the first of each segment left out."""
    pieces: list[Piece]
    """In their order, without gaps."""


class _Ledger:
    """Documents that a lane has read; each of their tokens has a number of its own."""

    def __init__(self) -> None:
        self.documents: list[tuple[int, Document]] = []
        self.first_numbers: list[int] = []
        self.size = 0

    def enter(self, source: int, document: Document) -> Document:
        """The document with numbers for tokens."""
        first, self.size = self.size, self.size + len(document.tokens)
        self.documents.append((source, document))
        self.first_numbers.append(first)
        return Document(np.arange(first, self.size, dtype=np.int32), document.targets)

    def find(self, number: int) -> tuple[int, int, Document]:
        """Number of the first token of the document that a number is of, its source, and itself."""
        index = bisect_right(self.first_numbers, number) - 1
        return self.first_numbers[index], *self.documents[index]


class _TracedReader:
    """A reader whose documents hold the ledger's numbers."""

    def __init__(self, reader: DocumentReader, source: int, ledger: _Ledger) -> None:
        self._reader = reader
        self._source = source
        self._ledger = ledger
        self._document: Document | None = None

    @property
    def cursor(self) -> SourceCursor:
        return self._reader.cursor

    @property
    def epoch(self) -> float:
        return self._reader.epoch

    def peek(self) -> Document:
        if self._document is None:
            self._document = self._ledger.enter(self._source, self._reader.peek())
        return self._document

    def advance(self) -> None:
        self._document = None
        self._reader.advance()


def trace(
    stream: Stream, lanes: Iterable[int], num_rows: int, report: Callable[[Skipped], None]
) -> list[TracedRow]:
    """The first rows of some lanes of a stream, step after step.

    Args:
        stream: What the lanes have in common.
        lanes: Which of them.
        num_rows: Rows of each.
        report: Is told of every bad record passed over.

    Raises:
        UserError: As the readers do.
    """
    # readers of one stream share the reading if all are there before the first is used
    traced = [
        TracedLane(
            stream.readers(lane, stream.beginning, report), stream.shares, stream.packing, lane
        )
        for lane in lanes
    ]
    return [lane.next_row() for _ in range(num_rows) for lane in traced]


class TracedLane:
    """A lane from its beginning on, whose rows say what they consist of.

    Args:
        readers: The lane's way through each source, from the beginning.
        shares: Share of each source in the tokens.
        packing: How rows are filled.
        lane: Which lane, to be named in the rows.
    """

    def __init__(
        self,
        readers: Sequence[DocumentReader],
        shares: Sequence[float],
        packing: Packing,
        lane: int,
    ) -> None:
        self._ledger = _Ledger()
        traced = [_TracedReader(reader, i, self._ledger) for i, reader in enumerate(readers)]
        cursor = LaneCursor(sources=tuple(reader.cursor for reader in readers))
        self._packer = Lane(traced, shares, replace(packing, padding=PADDING), cursor)
        self._packing = packing
        self._lane = lane

    def next_row(self) -> TracedRow:
        """The next row.

        Raises:
            UserError: As the readers do.
        """
        return _resolve(self._packer.next_row(), self._ledger, self._lane, self._packing)


def _resolve(row: Row, ledger: _Ledger, lane: int, packing: Packing) -> TracedRow:
    """The row with tokens in place of their numbers."""
    numbers = row.tokens
    is_padding = numbers == PADDING
    targets = ~is_padding if row.targets is None else row.targets & ~is_padding
    targets[row.starts] = False
    begins = np.ones(len(numbers), dtype=bool)
    begins[1:] = np.diff(numbers) != 1
    begins[1:] &= ~(is_padding[1:] & is_padding[:-1])
    # the last of a document and the first of the next may have successive numbers
    begins |= np.isin(numbers, ledger.first_numbers)
    begins[row.starts] = True
    places = [*np.flatnonzero(begins).tolist(), len(numbers)]
    tokens = np.full(len(numbers), packing.padding, dtype=np.int32)
    pieces = []
    for start, stop in pairwise(places):
        piece = Piece(start, start in row.starts, tokens[start:stop], targets[start:stop])
        if not is_padding[start]:
            first, source, document = ledger.find(int(numbers[start]))
            offset, length = int(numbers[start]) - first, len(document.tokens)
            tokens[start:stop] = document.tokens[offset : offset + stop - start]
            piece = piece._replace(document=first, source=source, offset=offset, length=length)
        pieces.append(piece)
    return TracedRow(lane, tokens, targets, pieces)
