"""Lanes: each packs its own share of the documents into rows and can be re-entered at any token.

Lane ``l`` of ``L`` reads the documents at positions l, l + L, l + 2L, ... of each epoch's order,
in that order, for ever. Rows overlap by one token (varlen: segments do), because fla shifts labels
inside a row: every token is a target exactly once, except the very first of the lane (varlen: of
each document). Nothing here reads sources, tokenises, or knows of ranks, workers and steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from flame_accel.config.errors import UserError

Encode = Callable[[int], np.ndarray]
"""Index of a document -> its tokens, int32 [tokens]; empty for a document that has none."""


class Order(Protocol):
    """Which document stands where in an epoch."""

    @property
    def num_documents(self) -> int:
        """Documents in an epoch."""
        ...

    def document(self, epoch: int, position: int) -> int:
        """Index of the document at a position of an epoch."""
        ...


EMPTY_PASSES = 100
"""A lane gives up after as many documents in a row without tokens as so many passes have."""


class Cursor(NamedTuple):
    """Where a lane stands: the token that its next row starts with; four integers in JSON."""

    epoch: int = 0
    """Passes of this lane over its documents that are complete."""
    position: int = 0
    """Which of the lane's documents in this epoch, from 0."""
    offset: int = 0
    """Token in that document, from 0."""
    skipped: int = 0
    """Documents without tokens that were passed over so far."""


class Row(NamedTuple):
    """What a lane gives to one step."""

    tokens: np.ndarray
    """int32 [T]."""
    starts: list[int]
    """Where segments start, the first at 0: state and targets do not cross them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How documents fill rows."""

    seq_len: int
    """T, tokens in a row; at least 2."""
    context_len: int | None = None
    """Longest segment in tokens, at least 2; None: a row is one segment of successive documents."""

    @property
    def varlen(self) -> bool:
        """Whether documents are kept apart."""
        return self.context_len is not None


class Lane:
    """One lane, from a cursor on; ``cursor`` always says where the next row starts.

    Args:
        encode: gives the tokens of a document.
        order: the order of the documents.
        packing: how rows are filled.
        lane: which lane, 0 <= lane < num_lanes <= order.num_documents.
        num_lanes: rows per step.
        cursor: where to go on.
    """

    def __init__(
        self,
        encode: Encode,
        order: Order,
        packing: Packing,
        *,
        lane: int,
        num_lanes: int,
        cursor: Cursor,
    ) -> None:
        self.cursor = cursor
        self._encode = encode
        self._order = order
        self._packing = packing
        self._lane = lane
        self._num_lanes = num_lanes
        self._length = lane_length(order.num_documents, lane, num_lanes)
        self._document: np.ndarray | None = None

    def next_row(self) -> Row:
        """Pack the next row and move the cursor behind it.

        Without varlen the cursor stays on the row's last token. With varlen a segment ends with its
        document, at ``context_len`` or at the end of the row; a cut document goes on in a new
        segment with the last token before the cut. A row's last place may so hold a lone first
        token, which comes again in the next row: no target is lost.
        """
        size = self._packing.seq_len
        longest = self._packing.context_len or size
        tokens = np.empty(size, dtype=np.int32)
        starts: list[int] = []
        filled = 0
        while filled < size:
            document = self._read()
            offset = self.cursor.offset
            if self._packing.varlen or filled == 0:
                starts.append(filled)
            end = min(len(document), offset + min(longest, size - filled))
            tokens[filled : filled + end - offset] = document[offset:end]
            filled += end - offset
            cut = end < len(document) if self._packing.varlen else filled == size
            if cut:
                self.cursor = self.cursor._replace(offset=end - 1)
            else:
                self._leave_document()
        return Row(tokens, starts)

    def _read(self) -> np.ndarray:
        """Tokens of the document under the cursor; documents without any are passed over."""
        if self._document is not None:
            return self._document
        for _ in range(EMPTY_PASSES * self._order.num_documents):
            epoch, position, offset, skipped = self.cursor
            index = self._order.document(epoch, self._lane + position * self._num_lanes)
            document = self._encode(index)
            if len(document) > offset:
                self._document = document
                return document
            if offset:
                raise UserError(
                    f"document {index} has {len(document)} tokens, but the next is {offset}",
                    where="the checkpoint's data position",
                    remedy="the data or the tokenizer changed since the checkpoint: restore them",
                )
            self._leave_document()
            self.cursor = self.cursor._replace(skipped=skipped + 1)
        raise UserError(
            f"there is no text in {EMPTY_PASSES} passes over {self._order.num_documents} documents",
            where=f"lane {self._lane} of {self._num_lanes}",
            remedy="remove the empty ones, or check the text column (training.text_column)",
        )

    def _leave_document(self) -> None:
        self._document = None
        epoch, position, _, skipped = self.cursor
        wraps = position + 1 == self._length
        self.cursor = Cursor(epoch + wraps, 0 if wraps else position + 1, 0, skipped)


def lane_length(num_documents: int, lane: int, num_lanes: int) -> int:
    """Number of documents that a lane reads in an epoch."""
    return len(range(lane, num_documents, num_lanes))
