"""The order in which lanes read documents by index: a table, or a token cache.

Lane `l` of `L` reads the documents at positions l, l + L, l + 2L, ... of each epoch's order,
epoch after epoch. A position is (epoch, number of the lane's documents done in it), so that reading
can start at any position at once.
"""

from collections.abc import Callable

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor, SourcePosition
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.counting_reader import EMPTY_DOCUMENTS, EMPTY_PASSES, CountingReader
from flame_accel.data.lanes.epoch_order import EpochOrder
from flame_accel.data.stages import IndexedDocuments

READ_AHEAD = 512
"""Most positions whose documents are looked up at once; fewer at the start."""


class ShuffledTable:
    """Documents by index, shuffled anew in each epoch.

    Args:
        documents: the documents.
        seed: seed of their order.
    """

    def __init__(self, documents: IndexedDocuments, *, seed: int) -> None:
        self.name = documents.name
        self.num_records = len(documents)
        self._documents = documents
        self._order = EpochOrder(num_documents=len(documents), seed=seed)

    def open_reader(
        self,
        lane: int,
        num_lanes: int,
        cursor: SourceCursor,
        policy: SkipPolicy,
        on_bad_record: Callable[[Skipped], None],
    ) -> "TableReader":
        """Read the documents of a lane from a cursor; see `stages.ShuffledSource`."""
        return TableReader(
            self._documents, self._order, lane, num_lanes, cursor, policy, on_bad_record
        )


class TableReader(CountingReader):
    """Reads the documents of one lane; see `ShuffledTable.open_reader`."""

    def __init__(
        self,
        documents: IndexedDocuments,
        order: EpochOrder,
        lane: int,
        num_lanes: int,
        cursor: SourceCursor,
        policy: SkipPolicy,
        on_bad_record: Callable[[Skipped], None],
    ) -> None:
        super().__init__(documents.name, cursor, policy, on_bad_record)
        self._documents = documents
        self._order = order
        self._positions = range(lane, order.num_documents, num_lanes)
        self._epoch, self._position = cursor.position or (0, 0)
        self._indices: list[int] = []
        # of the current position in `_indices`
        self._index = 0

    @property
    def approximate_epochs_read(self) -> float:
        """Passes over the lane's documents."""
        return self._epoch + self._position / len(self._positions)

    def _current_position(self) -> SourcePosition:
        return self._epoch, self._position

    def _move_cursor_to_usable_document_or_raise(self) -> Document:
        num_documents = self._order.num_documents
        most_read = min(EMPTY_PASSES * num_documents, EMPTY_DOCUMENTS)
        for _ in range(max(most_read, len(self._positions))):
            if self._index == len(self._indices):
                self._look_up_next_document_indices()
            found = self._documents[self._indices[self._index]]
            if isinstance(found, Document):
                return found
            self._raise_or_skip_record(found)
        raise self._no_text_error(f"{num_documents} documents")

    def _move_to_next_record(self) -> None:
        self._index += 1
        self._position += 1
        if self._position == len(self._positions):
            self._epoch += 1
            self._position = 0

    def _look_up_next_document_indices(self) -> None:
        """Look up the next indices of this epoch, twice as many as the last time."""
        count = min(READ_AHEAD, max(1, 2 * len(self._indices)))
        positions = self._positions[self._position : self._position + count]
        self._indices = self._order.document_indices_at(self._epoch, positions)
        self._index = 0
