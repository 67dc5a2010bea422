"""Best-fit packing: a document is cut only where it is longer than a row, rows end in padding.

Ding et al., "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830, 2024), within windows
of successive documents. With lognormal lengths around 500 to 2000 tokens and rows of 2048, 98 to
99 % of a row are documents.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flame_accel.data.cursors import LaneCursor
from flame_accel.data.documents import Document
from flame_accel.data.lanes.mixture import MixtureReader
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.lanes.sequential_packing import cursor_past_end_error

WINDOW_ROWS = 64
"""Number of rows, or a few more, whose documents are packed together."""


class Segment(NamedTuple):
    """A document, or a part of it that is not cut any further."""

    document: Document
    start: int
    """Its first token in the document."""
    stop: int
    """The token behind its last one."""


class Window:
    """Successive documents that are packed together.

    Args:
        seq_len: tokens in a row.
        max_segment_len: most tokens in a segment, 2 <= max_segment_len <= seq_len; a longer
            document is cut into segments that overlap by one token, so that every token but the
            first is a target once.
    """

    def __init__(self, seq_len: int, max_segment_len: int) -> None:
        self.num_tokens = 0
        """Tokens of all segments."""
        self._seq_len = seq_len
        self._longest = max_segment_len
        self._segments: list[Segment] = []

    @property
    def is_full(self) -> bool:
        """Whether the documents fill enough rows, the last one with some room, but not too much.

        Without any room a few tokens would need another row: rows would be nearly 1 % less full.
        """
        size = self._seq_len
        if self.num_tokens >= 2 * WINDOW_ROWS * size:
            return True
        room = -self.num_tokens % size
        return self.num_tokens >= WINDOW_ROWS * size and size // 8 < room <= size // 2

    def add_document(self, document: Document) -> None:
        """Add the next document, cut into segments if it is too long."""
        length = len(document.tokens)
        for start in range(0, max(1, length - 1), self._longest - 1):
            segment = Segment(document, start, min(length, start + self._longest))
            self._segments.append(segment)
            self.num_tokens += segment.stop - start

    def assign_segments_to_rows(self) -> list[list[Segment]]:
        """Put each segment, longest first, into the row with the least room that is enough for it.

        Returns:
            The segments of each row. Rows are in the order of their longest segments in the stream:
            in the order of the algorithm, all lanes would have their long documents at once.
        """
        lengths = [stop - start for _, start, stop in self._segments]
        rows: dict[int, list[Segment]] = {}
        # (room left, row), sorted; a row is named after its longest segment
        rooms: list[tuple[int, int]] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            index = bisect_left(rooms, (lengths[i], 0))
            room, row = (self._seq_len, i) if index == len(rooms) else rooms.pop(index)
            rows.setdefault(row, []).append(self._segments[i])
            if room > lengths[i]:
                insort(rooms, (room - lengths[i], row))
        return [rows[row] for row in sorted(rows)]


class BestFitPacker:
    """Packs the documents of a lane into rows, window after window.

    The cursor stays at the window's start, which is packed again from there. While its rows are
    returned the next window is read bit by bit, so that no row takes long.

    Args:
        mixture: the documents of the lane, from the start of a window.
        packing: how rows are filled.
        row_in_window: the next row of that window.
    """

    def __init__(self, mixture: MixtureReader, packing: Packing, row_in_window: int) -> None:
        assert packing.context_len is not None
        self._mixture = mixture
        self._packing = packing
        self._longest = min(packing.context_len, packing.seq_len)
        self._row = row_in_window
        # rows of the current window, and where it and the next one start
        self._rows: list[list[Segment]] = []
        self._start = self._next_start = mixture.cursors
        self._next_window = Window(packing.seq_len, self._longest)

    @property
    def cursor(self) -> LaneCursor:
        """The start of the window, and the next row in it."""
        return LaneCursor(row=self._row, sources=self._start)

    def read_ahead_in_steps(self) -> Iterator[None]:
        """Read the documents that the next row needs; yields after each row's worth of them.

        Lanes that read ahead in turns read a stream together; one after the other, each would come
        too late for what the first one has read, and read it again.
        """
        while not self._rows and not self._next_window.is_full:
            self._fill_next_window(self._next_window.num_tokens + self._packing.seq_len)
            yield

    def next_row(self) -> Row:
        """Pack the next row and move the cursor behind it.

        Raises:
            UserError: a source has nothing to read, or its documents are not those of the cursor.
        """
        size = self._packing.seq_len
        if not self._rows:
            self._fill_next_window(math.inf)
            self._rows = self._next_window.assign_segments_to_rows()
            self._next_window = Window(size, self._longest)
            self._next_start = self._mixture.cursors
            if self._row >= len(self._rows):
                raise cursor_past_end_error("window", f"{len(self._rows)} rows", self._row)
        row = build_padded_row(self._rows[self._row], size, self._packing.padding)
        self._row += 1
        self._fill_next_window(self._row * size)
        if self._row == len(self._rows):
            self._rows = []
            self._start = self._next_start
            self._row = 0
        return row

    def _fill_next_window(self, min_tokens: float) -> None:
        """Read documents until the next window has this many tokens, or is full."""
        while self._next_window.num_tokens < min_tokens and not self._next_window.is_full:
            reader = self._mixture.choose_reader()
            self._next_window.add_document(reader.peek())
            reader.consume_peeked()


def build_padded_row(segments: list[Segment], seq_len: int, padding_id: int) -> Row:
    """The row of some segments; the rest of it is a segment of padding without targets."""
    tokens = np.full(seq_len, padding_id, dtype=np.int32)
    targets = np.zeros(seq_len, dtype=bool)
    starts: list[int] = []
    filled = 0
    for document, start, stop in segments:
        starts.append(filled)
        span = slice(filled, filled + stop - start)
        tokens[span] = document.tokens[start:stop]
        targets[span] = True if document.targets is None else document.targets[start:stop]
        filled = span.stop
    if filled < seq_len:
        starts.append(filled)
    elif all(segment.document.targets is None for segment in segments):
        return Row(tokens, starts)
    return Row(tokens, starts, targets, seq_len - filled)
