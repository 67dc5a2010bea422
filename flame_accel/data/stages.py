"""What the stages of the data stream hand to one another, in the order in which data flows.

    options -> LocatedDataset -> RecordSource -> EncodedDataset -> ShuffledSource -> DocumentReader
            -> rows of a lane (`lanes`) -> batches of a step (`loading`)

Each stage is one protocol with a class for each form that data may have. Protocols only: nothing
here does any work.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, Record, Skipped


class IndexedRecords(Protocol):
    """Records in any order: a table; can be pickled."""

    name: str
    """What the user calls it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record | Skipped: ...

    @property
    def fingerprint(self) -> str:
        """Hash of the records."""
        ...


class IndexedDocuments(Protocol):
    """Documents in any order: a table of records with an encoder, or a token cache."""

    name: str
    """What the user calls it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document | Skipped: ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content, wherever it lies; the same for a table and its token cache."""
        ...


class Shards(Protocol):
    """Records in a few sequences, each of which can be read from any place; mostly files."""

    name: str
    """What the user calls it."""

    def __len__(self) -> int:
        """Number of shards, at least 1."""
        ...

    def read(self, shard: int, place: int, /) -> Iterator[tuple[Record | Skipped, int]]:
        """Records of a shard from a place (0: its start), each with the place behind it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what is known of the content without reading it."""
        ...


class ShuffledSource(Protocol):
    """One source of a mixture: the documents of a dataset in the order in which lanes read them."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Hash of the content, as far as it is known."""
        ...

    def open_reader(
        self,
        lane: int,
        num_lanes: int,
        cursor: SourceCursor,
        policy: SkipPolicy,
        report: Callable[[Skipped], None],
    ) -> "DocumentReader":
        """Read the documents of one lane, starting at `cursor`.

        Args:
            lane: which lane, from 0.
            num_lanes: number of all lanes.
            cursor: where to start.
            policy: what happens to records that give no document.
            report: called with every bad record that is skipped.
        """
        ...

    def check_lanes(self, num_lanes: int) -> None:
        """Check that there are at least as many documents as lanes.

        Raises:
            UserError: there are fewer, as far as that is known without reading.
        """
        ...


class DocumentReader(Protocol):
    """Reads the documents of one lane from one source, one after the other."""

    @property
    def cursor(self) -> SourceCursor:
        """Position of the document that `peek` returns; moves when `peek` skips a record."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the lane's documents; a fraction where their number is known."""
        ...

    def peek(self) -> Document:
        """The document at the cursor, the same one until `advance`.

        Raises:
            UserError: no document in a whole pass, or a record that the policy does not allow.
        """
        ...

    def advance(self) -> None:
        """Move the cursor behind the document that `peek` returns."""
        ...
