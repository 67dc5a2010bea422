"""Finds out which token of which document stands where in the rows of a lane.

How a lane fills its rows depends on the lengths and targets of documents, not on their tokens.
The lane is therefore given documents whose tokens are ids of their own, and the ids in the packed
rows say where each token comes from: no boundary is guessed from the tokens themselves.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.lane import Lanes, build_lane
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.stages import DocumentReader

PADDING_ID = -1


class Piece(NamedTuple):
    """Successive tokens of one document, or of padding, in a row."""

    start: int
    """Position of the first token in the row."""
    starts_segment: bool
    """Whether the state is reset and targets do not cross before it."""
    tokens: np.ndarray
    """int32 [n]."""
    targets: np.ndarray
    """bool [n], the tokens that the loss is computed for in this row."""
    document: int | None = None
    """Id of the first token of the document, unique in the lane; None: padding."""
    source: int = 0
    """Index of the source of the document."""
    offset: int = 0
    """Position of the first token in the document."""
    document_length: int = 0
    """Tokens of the whole document."""

    @property
    def end_in_document(self) -> int:
        """Position in the document after the last token."""
        return self.offset + len(self.tokens)


class TracedRow(NamedTuple):
    """A packed row and the pieces it consists of."""

    lane: int
    tokens: np.ndarray
    """int32 [T], as a run gets them."""
    targets: np.ndarray
    """bool [T], without the first token of each segment."""
    pieces: list[Piece]
    """In order, without gaps."""


class _RegisteredDocument(NamedTuple):
    first_id: int
    """Id of its first token."""
    source: int
    document: Document


class _TokenRegister:
    """Gives every token that a lane reads an id, and knows the document of each id."""

    def __init__(self) -> None:
        self.documents: list[_RegisteredDocument] = []
        self.first_ids: list[int] = []
        self._next_id = 0

    def register_and_replace_tokens(self, source: int, document: Document) -> Document:
        """The document with ids in place of its tokens."""
        first_id, self._next_id = self._next_id, self._next_id + len(document.tokens)
        self.documents.append(_RegisteredDocument(first_id, source, document))
        self.first_ids.append(first_id)
        return Document(np.arange(first_id, self._next_id, dtype=np.int32), document.targets)

    def find_document_of_token(self, token_id: int) -> _RegisteredDocument:
        """The document that the token with an id belongs to."""
        return self.documents[bisect_right(self.first_ids, token_id) - 1]


class _RegisteringReader:
    """A reader whose documents have the register's ids in place of their tokens."""

    def __init__(self, reader: DocumentReader, source: int, register: _TokenRegister) -> None:
        self._reader = reader
        self._source = source
        self._register = register
        self._document: Document | None = None

    @property
    def cursor(self) -> SourceCursor:
        return self._reader.cursor

    @property
    def approximate_epochs_read(self) -> float:
        return self._reader.approximate_epochs_read

    def peek(self) -> Document:
        if self._document is None:
            document = self._reader.peek()
            self._document = self._register.register_and_replace_tokens(self._source, document)
        return self._document

    def consume_peeked(self) -> None:
        self._document = None
        self._reader.consume_peeked()


def trace_first_rows(
    stream: Lanes,
    lanes: Iterable[int],
    rows_per_lane: int,
    on_bad_record: Callable[[Skipped], None],
) -> list[TracedRow]:
    """Pack and trace the first rows of some lanes of a stream, step after step.

    Args:
        stream: sources, shares and packing of all lanes.
        lanes: indices of the lanes.
        rows_per_lane: rows of each lane.
        on_bad_record: called with every bad record that is skipped.

    Raises:
        UserError: a reader cannot read its source.
    """
    # readers of one stream read together if all exist before the first is used
    traced = [
        TracedLane(
            stream.open_readers(lane, stream.start_cursor, on_bad_record),
            stream.shares,
            stream.packing,
            lane,
        )
        for lane in lanes
    ]
    return [lane.next_row() for _ in range(rows_per_lane) for lane in traced]


class TracedLane:
    """A lane, from its beginning, that returns traced rows.

    Args:
        readers: the lane's reader of each source, at its beginning.
        shares: share of each source in the tokens.
        packing: how rows are filled.
        lane: index of the lane, for the rows.
    """

    def __init__(
        self,
        readers: Sequence[DocumentReader],
        shares: Sequence[float],
        packing: Packing,
        lane: int,
    ) -> None:
        self._register = _TokenRegister()
        registering = [_RegisteringReader(r, i, self._register) for i, r in enumerate(readers)]
        cursor = LaneCursor(sources=tuple(reader.cursor for reader in readers))
        self._packer = build_lane(registering, shares, replace(packing, padding=PADDING_ID), cursor)
        self._packing = packing
        self._lane = lane

    def next_row(self) -> TracedRow:
        """Pack and trace the next row.

        Raises:
            UserError: a reader cannot read its source.
        """
        row = self._packer.next_row()
        return _trace_row_of_ids(row, self._register, self._lane, self._packing.padding)


def _trace_row_of_ids(row: Row, register: _TokenRegister, lane: int, padding_id: int) -> TracedRow:
    """The pieces of a row of token ids, with the tokens in place of the ids."""
    ids = row.tokens
    is_padding = ids == PADDING_ID
    targets = ~is_padding if row.targets is None else row.targets & ~is_padding
    targets[row.starts] = False
    starts_piece = np.ones(len(ids), dtype=bool)
    starts_piece[1:] = np.diff(ids) != 1
    starts_piece[1:] &= ~(is_padding[1:] & is_padding[:-1])
    # the last token of a document and the first of the next may have successive ids
    starts_piece |= np.isin(ids, register.first_ids)
    starts_piece[row.starts] = True
    bounds = [*np.flatnonzero(starts_piece).tolist(), len(ids)]
    tokens = np.full(len(ids), padding_id, dtype=np.int32)
    pieces = []
    for start, stop in pairwise(bounds):
        piece = Piece(start, start in row.starts, tokens[start:stop], targets[start:stop])
        if not is_padding[start]:
            first_id, source, document = register.find_document_of_token(int(ids[start]))
            offset = int(ids[start]) - first_id
            tokens[start:stop] = document.tokens[offset : offset + stop - start]
            piece = piece._replace(
                document=first_id,
                source=source,
                offset=offset,
                document_length=len(document.tokens),
            )
        pieces.append(piece)
    return TracedRow(lane, tokens, targets, pieces)
