"""Sequential packing: rows of documents one after the other, cut where a row is full.

Rows overlap by one token (with varlen segments do), because fla shifts labels inside a row: every
token is a target exactly once, except the very first of the lane (with varlen: of each document).
"""

from collections.abc import Iterator

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.cursors import LaneCursor
from flame_accel.data.lanes.mixture import MixtureReader
from flame_accel.data.lanes.rows import Packing, Row


class SequentialPacker:
    """Packs the documents of a lane into rows, in their order.

    Args:
        mixture: the documents of the lane.
        packing: how rows are filled.
        offset: token of the current document that the next row starts with.
    """

    def __init__(self, mixture: MixtureReader, packing: Packing, offset: int) -> None:
        self._mixture = mixture
        self._packing = packing
        self._longest = min(packing.context_len or packing.seq_len, packing.seq_len)
        self._offset = offset

    @property
    def cursor(self) -> LaneCursor:
        """Where the next row starts."""
        source = self._mixture.source if self._offset else 0
        return LaneCursor(source, self._offset, sources=self._mixture.cursors)

    def read_ahead_in_steps(self) -> Iterator[None]:
        """Nothing: a row is packed from the documents that it holds, as they are read."""
        return iter(())

    def next_row(self) -> Row:
        """Pack the next row and move the cursor behind it.

        Without varlen the cursor stays on the row's last token. With varlen a segment ends with its
        document, at `context_len` or at the end of the row; a cut document continues in a new
        segment with the last token before the cut. So the last place of a row may hold a lone first
        token, which comes again in the next row: no target is lost.

        Raises:
            UserError: a source has nothing to read, or its documents are not those of the cursor.
        """
        size, varlen = self._packing.seq_len, self._packing.varlen
        tokens = np.empty(size, dtype=np.int32)
        targets: np.ndarray | None = None
        starts: list[int] = []
        filled = 0
        while filled < size:
            reader = self._mixture.choose_reader(same_as_last=self._offset > 0)
            document = reader.peek()
            offset, length = self._offset, len(document.tokens)
            if offset >= length:
                raise cursor_past_end_error("document", f"{length} tokens", offset)
            if varlen or not filled:
                starts.append(filled)
            end = min(length, offset + min(self._longest, size - filled))
            span = slice(filled, filled + end - offset)
            tokens[span] = document.tokens[offset:end]
            if document.targets is not None:
                if targets is None:
                    targets = np.ones(size, dtype=bool)
                targets[span] = document.targets[offset:end]
            filled = span.stop
            if end < length if varlen else filled == size:
                self._offset = end - 1
            else:
                reader.consume_peeked()
                self._offset = 0
        return Row(tokens, starts, targets)


def cursor_past_end_error(container: str, length_with_unit: str, position: int) -> UserError:
    """The error to raise for a cursor that points past the end of its document or window."""
    return UserError(
        f"a {container} has {length_with_unit}, but the next is {position}",
        where="the checkpoint's data position",
        remedy="the data or the tokenizer changed since the checkpoint: restore them",
    )
