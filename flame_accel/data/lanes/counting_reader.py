"""What the ways of a lane through tables and streams have in common: counts, and what is refused.

Where the next record is found is said by `table` and `stream`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy, refused_record
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, Skipped

EMPTY_PASSES = 100
"""A lane gives up after as many passes in a row over all documents without finding any ..."""
EMPTY_DOCUMENTS = 1_000_000
"""... or after so many, and a pass over its own: the order changes, and may yet bring some."""


class CountingReader(ABC):
    """A reader (see `parts.Reader`) that counts what it uses and passes over.

    Args:
        name: what the user calls the source.
        cursor: where to go on; its place is the subclass's part.
        policy: what happens to records that give no document.
        report: told of every bad record that is passed over.
    """

    def __init__(
        self,
        name: str,
        cursor: SourceCursor,
        policy: SkipPolicy,
        report: Callable[[Skipped], None],
    ) -> None:
        self._name = name
        self._policy = policy
        self._report = report
        self._document: Document | None = None
        _, self._consumed, self._skipped, self._bad, self._tokens = cursor

    @property
    def cursor(self) -> SourceCursor:
        """Where the document stands that `peek` gives."""
        return SourceCursor(self._place(), self._consumed, self._skipped, self._bad, self._tokens)

    def peek(self) -> Document:
        """The document under the cursor.

        Raises:
            UserError: no document in many passes, or a record that the policy refuses.
        """
        if self._document is None:
            self._document = self._find()
        return self._document

    def advance(self) -> None:
        """Move behind the document that `peek` gives."""
        self._tokens += len(self.peek().tokens)
        self._consumed += 1
        self._document = None
        self._move()

    @abstractmethod
    def _place(self) -> tuple[int, ...]:
        """The place of the record under the cursor."""

    @abstractmethod
    def _find(self) -> Document:
        """The first document from the cursor on; the cursor moves to it."""

    @abstractmethod
    def _move(self) -> None:
        """Go on to the next record."""

    def _pass_over(self, skipped: Skipped) -> None:
        if self._policy.stops_run(skipped):
            raise refused_record(skipped, self._name)
        self._skipped += 1
        if self._policy.counts_as_bad(skipped):
            self._bad += 1
            self._report(skipped)
        self._move()

    def _no_text(self, what: str) -> UserError:
        return UserError(
            f"there is no text in any of the {what}",
            where=self._name,
            remedy="remove the empty ones, or check the text column (training.text_column)",
        )
