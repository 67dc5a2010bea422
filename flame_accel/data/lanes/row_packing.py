"""Lanes: each packs its own documents into rows and can be re-entered between any two of them.

Rows overlap by one token (with varlen segments do), because fla shifts labels inside a row: every
token is a target exactly once, except the very first of the lane (with varlen: of each document).
Which documents a lane reads is said by readers; ranks, workers and steps are no matter here.
"""

import math
from collections.abc import Sequence

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.lanes.best_fit_packing import Piece, Window, build_row
from flame_accel.data.lanes.mixture import choose_source
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.stages import DocumentReader


class Lane:
    """One lane, from a cursor on.

    Args:
        readers: its ways through the sources, each from its cursor in ``cursor.sources`` on.
        shares: of each source in the tokens; only their proportions matter.
        packing: how rows are filled.
        cursor: where to go on; taken from a lane of the same sources, shares and packing.
    """

    def __init__(
        self,
        readers: Sequence[DocumentReader],
        shares: Sequence[float],
        packing: Packing,
        cursor: LaneCursor,
    ) -> None:
        assert len(readers) == len(shares)
        assert packing.varlen or not packing.best_fit
        self._readers = readers
        self._shares = tuple(shares)
        self._packing = packing
        self._longest = min(packing.context_len or packing.seq_len, packing.seq_len)
        self._source = cursor.source
        self._offset = cursor.offset
        self._row = cursor.row
        # with best-fit packing: the rows of a window, and where it and the next one start
        self._rows: list[list[Piece]] = []
        self._start = self._next_start = self._source_cursors()
        self._gathered = Window(packing.seq_len, self._longest)

    @property
    def cursor(self) -> LaneCursor:
        """Where the next row starts."""
        if self._packing.best_fit:
            return LaneCursor(row=self._row, sources=self._start)
        source = self._source if self._offset else 0
        return LaneCursor(source, self._offset, sources=self._source_cursors())

    def prepare(self) -> bool:
        """Gather a row's worth of the documents that the next row waits for.

        Lanes that are prepared in turns read a stream together; one after the other, each would
        come too late for what the first has read, and read it anew.

        Returns:
            Whether there is more to gather.
        """
        if not self._packing.best_fit or self._rows:
            return False
        self._gather(self._gathered.num_tokens + self._packing.seq_len)
        return not self._gathered.full

    def next_row(self) -> Row:
        """Pack the next row and move the cursor behind it.

        Raises:
            UserError: a source has nothing to read, or other documents than the cursor is of.
        """
        return self._best_fit_row() if self._packing.best_fit else self._sequential_row()

    def _sequential_row(self) -> Row:
        """The next row of documents one after the other.

        Without varlen the cursor stays on the row's last token. With varlen a segment ends with its
        document, at ``context_len`` or at the end of the row; a cut document goes on in a new
        segment with the last token before the cut. A row's last place may so hold a lone first
        token, which comes again in the next row: no target is lost.
        """
        size, varlen = self._packing.seq_len, self._packing.varlen
        tokens = np.empty(size, dtype=np.int32)
        targets: np.ndarray | None = None
        starts: list[int] = []
        filled = 0
        while filled < size:
            reader = self._next_reader()
            document = reader.peek()
            offset, length = self._offset, len(document.tokens)
            if offset >= length:
                raise _changed("document", f"{length} tokens", offset)
            if varlen or not filled:
                starts.append(filled)
            end = min(length, offset + min(self._longest, size - filled))
            place = slice(filled, filled + end - offset)
            tokens[place] = document.tokens[offset:end]
            if document.targets is not None:
                if targets is None:
                    targets = np.ones(size, dtype=bool)
                targets[place] = document.targets[offset:end]
            filled = place.stop
            if end < length if varlen else filled == size:
                self._offset = end - 1
            else:
                reader.advance()
                self._offset = 0
        return Row(tokens, starts, targets)

    def _best_fit_row(self) -> Row:
        """The next row of a window of documents; see `best_fit`.

        The cursor stays at the window's start, which is packed again from there. While its rows are
        given the next window is gathered bit by bit, so that no row takes long.
        """
        size = self._packing.seq_len
        if not self._rows:
            self._gather(math.inf)
            self._rows = self._gathered.pack()
            self._gathered = Window(size, self._longest)
            self._next_start = self._source_cursors()
            if self._row >= len(self._rows):
                raise _changed("window", f"{len(self._rows)} rows", self._row)
        row = build_row(self._rows[self._row], size, self._packing.padding)
        self._row += 1
        self._gather(self._row * size)
        if self._row == len(self._rows):
            self._rows = []
            self._start = self._next_start
            self._row = 0
        return row

    def _gather(self, num_tokens: float) -> None:
        """Gather documents until there are so many tokens, or enough for a window."""
        while self._gathered.num_tokens < num_tokens and not self._gathered.full:
            reader = self._next_reader()
            self._gathered.add(reader.peek())
            reader.advance()

    def _next_reader(self) -> DocumentReader:
        """The reader of the document under way, or of the one that comes next."""
        readers = self._readers
        if len(readers) > 1 and not self._offset:
            tokens = [reader.cursor.tokens for reader in readers]
            lengths = [len(reader.peek().tokens) for reader in readers]
            self._source = choose_source(self._shares, tokens, lengths)
        return readers[self._source]

    def _source_cursors(self) -> tuple[SourceCursor, ...]:
        return tuple(reader.cursor for reader in self._readers)


def _changed(thing: str, what: str, following: int) -> UserError:
    return UserError(
        f"a {thing} has {what}, but the next is {following}",
        where="the checkpoint's data position",
        remedy="the data or the tokenizer changed since the checkpoint: restore them",
    )
