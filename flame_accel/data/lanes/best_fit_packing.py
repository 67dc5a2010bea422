"""Best-fit packing: a document is cut only where it is longer than a row, rows end in padding.

Ding et al., "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830, 2024), within windows
of successive documents. With lengths of a lognormal distribution around 500 to 2000 tokens and rows
of 2048, 98 to 99 % of a row are documents. Nothing here reads documents or knows of cursors.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from flame_accel.data.documents import Document
from flame_accel.data.lanes.rows import Row

WINDOW_ROWS = 64
"""Documents are packed together until they hold as many tokens as so many rows, or a few more."""


class Piece(NamedTuple):
    """Part of a document that stays together."""

    document: Document
    start: int
    stop: int


class Window:
    """Successive documents, gathered until they fill rows.

    Args:
        seq_len: tokens in a row.
        longest: most tokens in a piece, 2 <= longest <= seq_len; a longer document is cut into
            pieces that overlap by one token, so that every token but the first is a target once.
    """

    def __init__(self, seq_len: int, longest: int) -> None:
        self.num_tokens = 0
        self._seq_len = seq_len
        self._longest = longest
        self._pieces: list[Piece] = []

    @property
    def full(self) -> bool:
        """Whether the documents fill enough rows, the last with some room, but not too much.

        Without any room a few tokens would be left for another row; without this care rows would
        hold nearly a hundredth less.
        """
        size = self._seq_len
        if self.num_tokens >= 2 * WINDOW_ROWS * size:
            return True
        room = -self.num_tokens % size
        return self.num_tokens >= WINDOW_ROWS * size and size // 8 < room <= size // 2

    def add(self, document: Document) -> None:
        """Gather the next document."""
        length = len(document.tokens)
        for start in range(0, max(1, length - 1), self._longest - 1):
            piece = Piece(document, start, min(length, start + self._longest))
            self._pieces.append(piece)
            self.num_tokens += piece.stop - start

    def pack(self) -> list[list[Piece]]:
        """Each piece, by decreasing length, goes into the row with the least room that is enough.

        Returns:
            The pieces of each row. Rows come in the order in which their longest pieces do in the
            stream: in that of the algorithm all lanes would have their long documents at once.
        """
        lengths = [stop - start for _, start, stop in self._pieces]
        rows: dict[int, list[Piece]] = {}
        # (room left, row), sorted; a row is called by its longest piece
        rooms: list[tuple[int, int]] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            place = bisect_left(rooms, (lengths[i], 0))
            room, row = (self._seq_len, i) if place == len(rooms) else rooms.pop(place)
            rows.setdefault(row, []).append(self._pieces[i])
            if room > lengths[i]:
                insort(rooms, (room - lengths[i], row))
        return [rows[row] for row in sorted(rows)]


def build_row(pieces: list[Piece], seq_len: int, padding: int) -> Row:
    """The row of some pieces; what is left of it is a segment of padding without targets."""
    tokens = np.full(seq_len, padding, dtype=np.int32)
    targets = np.zeros(seq_len, dtype=bool)
    starts: list[int] = []
    filled = 0
    for document, start, stop in pieces:
        starts.append(filled)
        place = slice(filled, filled + stop - start)
        tokens[place] = document.tokens[start:stop]
        targets[place] = True if document.targets is None else document.targets[start:stop]
        filled = place.stop
    if filled < seq_len:
        starts.append(filled)
    elif all(piece.document.targets is None for piece in pieces):
        return Row(tokens, starts)
    return Row(tokens, starts, targets, seq_len - filled)
