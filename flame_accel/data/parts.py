"""What the parts of the stream hand to one another: documents, what is passed over, cursors.

Sources give texts or conversations, encoders make documents of tokens, lanes pack them into rows.
The protocols say what each side may rely on; nothing here does any work.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Conversation = list[dict[str, Any]]
"""Messages, each with the keys "role" and "content", and whatever else the template reads."""
Record = str | Conversation
"""What a source holds at a position."""


class Skipped(NamedTuple):
    """What stands where a document would be."""

    why: Literal["empty", "damaged", "held out"]
    """No text in it; cannot be read or is not text; belongs to the other side of the split."""
    where: str = ""
    """File and line, row or index."""
    what: str = ""
    """What is wrong with it."""


class Document(NamedTuple):
    """Tokens of a document, at least one, bos and eos included."""

    tokens: np.ndarray
    """Integers [n], of any integer type."""
    targets: np.ndarray | None = None
    """bool [n], which of them the loss is for (the first is never predicted); None: all."""


Encode = Callable[[Record | Skipped], Document | Skipped]
"""Record to document; what is passed over already stays so."""


class Documents(Protocol):
    """Documents in any order: a table of texts with an encoder, or a token cache."""

    name: str
    """What the user calls it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document | Skipped: ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content (not of where it lies), the same for a table and its token cache."""
        ...


class Shards(Protocol):
    """Records in a few sequences that are read from any place on; each sequence is a file."""

    name: str
    """What the user calls it."""

    def __len__(self) -> int:
        """Number of shards, at least 1."""
        ...

    def read(self, shard: int, place: int, /) -> Iterator[tuple[Record | Skipped, int]]:
        """Records of a shard from a place on (0: its start), each with the place behind it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what is known of the content without reading it."""
        ...


class SourceCursor(NamedTuple):
    """Where a lane stands in one source, at the start of a document; integers in JSON."""

    place: tuple[int, ...] = ()
    """As the reader of the source defines it; empty: the beginning."""
    consumed: int = 0
    """Documents that were used up so far ..."""
    skipped: int = 0
    """... and passed over: together all that were read."""
    bad: int = 0
    """Those of `skipped` that count against `training.max_bad_records`."""
    tokens: int = 0
    """Tokens of the documents that were used up."""


class Reader(Protocol):
    """The way of one lane through one source."""

    @property
    def cursor(self) -> SourceCursor:
        """Where the document stands that `peek` gives; moves when `peek` passes something over."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the lane's share of the source; a fraction where its length is known."""
        ...

    def peek(self) -> Document:
        """The document under the cursor, the same one until `advance`.

        Raises:
            UserError: nothing to read in a whole pass, or a record that the policy refuses.
        """
        ...

    def advance(self) -> None:
        """Move behind the document that `peek` gives."""
        ...


class SkipPolicy(NamedTuple):
    """What happens to records that give no document."""

    max_bad: int | None = None
    """None: those without text are passed over, a damaged one stops the run. A number: either kind
    counts, and more than so many (over all lanes of a rank) stop the run; 0 stops at the first."""

    def is_bad(self, skipped: Skipped) -> bool:
        """Whether it counts against the limit."""
        return skipped.why == "damaged" or (skipped.why == "empty" and self.max_bad is not None)

    def is_refused(self, skipped: Skipped) -> bool:
        """Whether it stops the run at once."""
        return self.is_bad(skipped) and not self.max_bad


class Source(Protocol):
    """One of the sources of a mixture."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Hash of the content, as far as it is known."""
        ...

    def reader(
        self,
        lane: int,
        num_lanes: int,
        cursor: SourceCursor,
        policy: SkipPolicy,
        report: Callable[[Skipped], None],
    ) -> Reader:
        """The way of a lane, from a cursor on; `report` is told of every bad record passed over."""
        ...

    def check_lanes(self, num_lanes: int) -> None:
        """Refuse more lanes than there are documents.

        Raises:
            UserError: as far as it is known without reading.
        """
        ...


class LaneCursor(NamedTuple):
    """Where a lane stands: what its next row starts with; integers in JSON."""

    source: int = 0
    """Which source the document is of that the row starts in, if `offset` is not 0 ..."""
    offset: int = 0
    """... and the token in it. 0: between documents, the next one is chosen anew."""
    row: int = 0
    """Rows given of the window that starts at this cursor; only with best-fit packing."""
    sources: tuple[SourceCursor, ...] = ()
    """One for each source."""


class Row(NamedTuple):
    """What a lane gives to one step."""

    tokens: np.ndarray
    """int32 [T]."""
    starts: list[int]
    """Where segments start, the first at 0: state and targets do not cross them."""
    targets: np.ndarray | None = None
    """bool [T], which tokens the loss is for, apart from the first of a segment; None: all."""
    padding: int = 0
    """How many tokens at the end are of no document: a segment of its own, without targets."""


Sources = Sequence[Source]
