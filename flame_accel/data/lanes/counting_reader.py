"""What the readers of tables and streams have in common: counters, and records that are skipped.

Where the next record comes from is decided in `shuffled_table` and `shuffled_stream`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy, refused_record_error
from flame_accel.data.cursors import SourceCursor, SourcePosition
from flame_accel.data.documents import Document, Skipped

EMPTY_PASSES = 100
"""A lane gives up after this many successive passes over all records without any document."""
EMPTY_DOCUMENTS = 1_000_000
"""A lane also gives up after this many records, if they are at least a pass over its own: the order
changes from epoch to epoch, and may still bring a document."""


class CountingReader(ABC):
    """A `DocumentReader` that counts the documents it uses and the records it skips.

    Args:
        name: how messages name the source.
        cursor: where to start; the subclass interprets its position.
        policy: what happens to records that give no document.
        on_bad_record: called with every bad record that is skipped.
    """

    def __init__(
        self,
        name: str,
        cursor: SourceCursor,
        policy: SkipPolicy,
        on_bad_record: Callable[[Skipped], None],
    ) -> None:
        self._name = name
        self._policy = policy
        self._on_bad_record = on_bad_record
        self._document: Document | None = None
        _, self._consumed, self._skipped, self._bad, self._tokens = cursor

    @property
    def cursor(self) -> SourceCursor:
        """Position of the document that `peek` returns."""
        return SourceCursor(
            self._current_position(), self._consumed, self._skipped, self._bad, self._tokens
        )

    def peek(self) -> Document:
        """The document under the cursor.

        Raises:
            UserError: no document in many passes, or a record that the policy does not allow.
        """
        if self._document is None:
            self._document = self._move_cursor_to_usable_document_or_raise()
        return self._document

    def consume_peeked(self) -> None:
        """Move the cursor behind the document that `peek` returns."""
        self._tokens += len(self.peek().tokens)
        self._consumed += 1
        self._document = None
        self._move_to_next_record()

    @abstractmethod
    def _current_position(self) -> SourcePosition:
        """The position of the record under the cursor."""

    @abstractmethod
    def _move_cursor_to_usable_document_or_raise(self) -> Document:
        """The first document from the cursor on; the cursor moves to it."""

    @abstractmethod
    def _move_to_next_record(self) -> None:
        """Move the cursor to the next record."""

    def _raise_or_skip_record(self, skipped: Skipped) -> None:
        """Count the record at the cursor as skipped and move on.

        Raises:
            UserError: the policy does not allow it.
        """
        if self._policy.stops_run(skipped):
            raise refused_record_error(skipped, self._name)
        self._skipped += 1
        if self._policy.counts_damaged_always_and_empty_if_limited(skipped):
            self._bad += 1
            self._on_bad_record(skipped)
        self._move_to_next_record()

    def _no_text_error(self, searched_records: str) -> UserError:
        return UserError(
            f"there is no text in any of the {searched_records}",
            where=self._name,
            remedy="remove the empty ones, or check the text column (training.text_column)",
        )
