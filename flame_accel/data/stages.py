"""What the stages of the data stream hand to one another, in the order in which data flows.

    options -> LocatedDataset -> RecordSource -> EncodedDataset -> ShuffledSource -> DocumentReader
            -> rows of a lane (`lanes.lane`) -> batches of a step (`loading.step_batches`)

Each stage is one protocol with a class for each form that data may have. Protocols only: nothing
here does any work.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, EncodedRecord, PositionedRecord, Record, Skipped
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.tokens.encoder import Encoder


class LocatedDataset(Protocol):
    """What the name of a dataset leads to; nothing is read yet.

    Raises:
        UserError: on creation: options that do not apply to this kind, or nothing there.
    """

    def __init__(self, options: DatasetOptions) -> None: ...

    @property
    def splits(self) -> Sequence[str | None]:
        """Names of the splits; None stands for all of a dataset without splits."""
        ...

    @property
    def accepts_hf_split_slices(self) -> bool:
        """Whether slices and sums of splits may be asked for as well, such as train[:10%]."""
        ...

    def open_split(self, split: str | None) -> "RecordSource":
        """Open one of the splits.

        Raises:
            UserError: it cannot be read, or holds no text.
        """
        ...


class RecognizedDataset(LocatedDataset, Protocol):
    """A kind of dataset that options show; listed in `sources.opening.DATASET_KINDS`."""

    @staticmethod
    def recognizes(options: DatasetOptions) -> bool:
        """Whether the dataset is of this kind."""
        ...


class RecordSource(Protocol):
    """The records of a split: by index, in sequence, or tokenized already."""

    name: str
    """How messages name the data."""

    def open_encoded(self, encoder: Encoder, held_out: HeldOut | None) -> "EncodedDataset":
        """The documents that the encoder makes of these records.

        Args:
            encoder: makes documents.
            held_out: which side of a split by hash is wanted; None: all documents.

        Raises:
            UserError: a token cache of another tokenizer, or one that is damaged.
        """
        ...


class FingerprintedData(Protocol):
    """Data with a name for messages, of which it can be seen whether it changed."""

    name: str
    """How messages name the data."""

    @property
    def quick_content_fingerprint(self) -> str:
        """Hash of the content, as far as it is known without reading all of it.

        It is the same wherever the content lies, and for a table and its token cache.
        """
        ...


class EncodedDataset(FingerprintedData, Protocol):
    """The documents of a dataset, or of one side of it."""

    held_out: HeldOut | None
    """Which side of a split by hash; None: all documents."""
    conversations: bool
    """Whether the records are conversations, with the loss on some of their tokens only."""

    @property
    def storage_description(self) -> str:
        """What the data is, in words: a table, a token cache, a stream."""
        ...

    @property
    def num_records(self) -> int | None:
        """Skipped ones included; None: unknown, they are read in sequence."""
        ...

    @property
    def num_tokens(self) -> int | None:
        """Tokens of all documents; None: unknown."""
        ...

    def shuffle(self, *, seed: int, stream_block_size: int) -> "ShuffledSource":
        """The documents in the order in which lanes read them.

        Args:
            seed: of the order.
            stream_block_size: number of records that are shuffled together where they come in
                sequence; a table is shuffled as a whole.
        """
        ...

    def read_in_order(self, *, table_sample_size: int = 0) -> Iterator[EncodedRecord]:
        """What each record gives, once, in the order of the data.

        Args:
            table_sample_size: read at most this many evenly spread records (0: all) of data that
                has indices; a stream has none to spread and gives all of its records.
        """
        ...


class IndexedData(Protocol):
    """Data in any order: records, or the documents made from them."""

    name: str
    """How messages name the data."""

    @property
    def sampled_records_fingerprint(self) -> str:
        """`record_hashes.fingerprint_from_sample`: the same for a table and its token cache."""
        ...

    def __len__(self) -> int: ...


class IndexedRecords(IndexedData, Protocol):
    """Records in any order: a table; can be pickled."""

    def __getitem__(self, index: int, /) -> Record | Skipped: ...


class IndexedDocuments(IndexedData, Protocol):
    """Documents in any order: a table of records with an encoder, or a token cache."""

    def __getitem__(self, index: int, /) -> Document | Skipped: ...


class SizedDocuments(IndexedDocuments, Protocol):
    """Documents in any order that know the size of their texts."""

    def read_with_num_text_bytes(self, index: int) -> EncodedRecord:
        """A document, and the length of its text in UTF-8."""
        ...


class Shards(FingerprintedData, Protocol):
    """Records in a few sequences, each of which can be read from any position; mostly files."""

    def __len__(self) -> int:
        """Number of shards, at least 1."""
        ...

    def read(self, shard: int, start_position: int, /) -> Iterator[PositionedRecord]:
        """Records of a shard from a position (0: its start) to its end."""
        ...


class ShuffledSource(Protocol):
    """One source of a mixture: the documents of a dataset in the order in which lanes read them."""

    name: str

    @property
    def num_records(self) -> int | None:
        """Skipped ones included; None: unknown, they are read in sequence."""
        ...

    def open_reader(
        self,
        lane: int,
        num_lanes: int,
        cursor: SourceCursor,
        policy: SkipPolicy,
        on_bad_record: Callable[[Skipped], None],
    ) -> "DocumentReader":
        """Read the documents of one lane, starting at `cursor`.

        Args:
            lane: which lane, from 0.
            num_lanes: number of all lanes.
            cursor: where to start.
            policy: what happens to records that give no document.
            on_bad_record: called with every bad record that is skipped.
        """
        ...


class DocumentReader(Protocol):
    """Reads the documents of one lane from one source, one after the other."""

    @property
    def cursor(self) -> SourceCursor:
        """Position of the document that `peek` returns; moves when `peek` skips a record."""
        ...

    @property
    def approximate_epochs_read(self) -> float:
        """Passes over the lane's documents; of a stream in whole shards."""
        ...

    def peek(self) -> Document:
        """The document at the cursor, the same one until `consume_peeked`.

        Raises:
            UserError: no document in a whole pass, or a record that the policy does not allow.
        """
        ...

    def consume_peeked(self) -> None:
        """Move the cursor behind the document that `peek` returns."""
        ...
