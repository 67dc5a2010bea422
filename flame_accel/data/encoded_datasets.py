"""Datasets with an encoder: the documents of tokens that records become.

By index, for tables and token caches, or in sequence, for shards. Which records are read is decided
in `sources`; in which order lanes read the documents, in `lanes`.
"""

from collections.abc import Iterator
from functools import partial

from flame_accel.data.documents import (
    Document,
    Encode,
    EncodedRecord,
    Record,
    Skipped,
    count_utf8_bytes,
    first_is_conversation,
)
from flame_accel.data.even_sampling import evenly_spread_indices
from flame_accel.data.lanes.shuffled_stream import ShuffledStream
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.stages import IndexedRecords, Shards, SizedDocuments


class EncodedTable:
    """The documents of a table, encoded when they are read; a `Skipped` always has a place.

    Args:
        table: the records.
        encode: makes documents of them.
    """

    def __init__(self, table: IndexedRecords, encode: Encode) -> None:
        self.name = table.name
        self._table = table
        self._encode = encode

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int, /) -> Document | Skipped:
        return self.read_with_num_text_bytes(index).document

    def read_with_num_text_bytes(self, index: int) -> EncodedRecord:
        """A document, and the size of its text."""
        record = self._table[index]
        document = self._encode(record)
        if isinstance(document, Skipped) and not document.where:
            document = document._replace(where=f"{self.name}, row {index}")
        return EncodedRecord(document, count_utf8_bytes(record))

    @property
    def sampled_records_fingerprint(self) -> str:
        """Hash of evenly spread records, as of `record_hashes.fingerprint_from_sample`."""
        return self._table.sampled_records_fingerprint


class IndexedDataset:
    """Documents that can be read in any order.

    Args:
        documents: the documents; those of the other side are `Skipped`.
        held_out: which side of a split by hash they are; None: all documents.
        conversations: whether the records are conversations, with the loss on some tokens only.
        storage_description: what the data is, in words.
        num_tokens: tokens of all documents, if known.
    """

    def __init__(
        self,
        documents: SizedDocuments,
        held_out: HeldOut | None,
        *,
        conversations: bool,
        storage_description: str,
        num_tokens: int | None = None,
    ) -> None:
        self.name = documents.name
        self.held_out = held_out
        self.conversations = conversations
        self.storage_description = storage_description
        self.num_records = len(documents)
        self.num_tokens = num_tokens
        self._documents = documents

    @property
    def quick_content_fingerprint(self) -> str:
        """Hash of the content, the same for a table and its token cache."""
        return self._documents.sampled_records_fingerprint

    def shuffle(self, *, seed: int, stream_block_size: int) -> ShuffledTable:
        """The documents in the order in which lanes read them; all are shuffled together."""
        return ShuffledTable(self._documents, seed=seed)

    def read_in_order(self, *, table_sample_size: int = 0) -> Iterator[EncodedRecord]:
        """What evenly spread records give, at most `table_sample_size` of them; 0: all."""
        return map(
            self._documents.read_with_num_text_bytes,
            evenly_spread_indices(self.num_records, table_sample_size),
        )

    def __str__(self) -> str:
        return _describe_count_and_held_out_share(
            self.name, self.num_records, "document", self.held_out
        )


class SequentialDataset:
    """Documents that are read in sequence, from shards.

    Args:
        shards: the records.
        encode: makes documents of all of them.
        held_out: which side of a split by hash is wanted; None: all documents.
    """

    num_records: int | None = None
    num_tokens: int | None = None

    def __init__(self, shards: Shards, encode: Encode, held_out: HeldOut | None) -> None:
        self.name = shards.name
        self.held_out = held_out
        self.conversations = first_is_conversation(_read_all_shards(shards))
        count = f"{len(shards):,} shards" if len(shards) > 1 else "one shard"
        self.storage_description = f"a stream of {count}"
        self._shards = shards
        self._encode = restrict_encode_to_side(encode, held_out)

    @property
    def quick_content_fingerprint(self) -> str:
        """Hash of what is known of the content without reading it."""
        return self._shards.quick_content_fingerprint

    def shuffle(self, *, seed: int, stream_block_size: int) -> ShuffledStream:
        """The documents in the order in which lanes read them, shuffled in blocks of records."""
        return ShuffledStream(self._shards, self._encode, seed=seed, block_size=stream_block_size)

    def read_in_order(self, *, table_sample_size: int = 0) -> Iterator[EncodedRecord]:
        """What each record gives, in the order of the data: all of them, even for a sample."""
        for record in _read_all_shards(self._shards):
            yield EncodedRecord(self._encode(record), count_utf8_bytes(record))

    def __str__(self) -> str:
        return _describe_count_and_held_out_share(
            self.name, len(self._shards), "shard", self.held_out
        )


def restrict_encode_to_side(encode: Encode, held_out: HeldOut | None) -> Encode:
    """`encode`, for the documents of one side of a split only; None: for all of them."""
    return encode if held_out is None else partial(_encode_if_on_side, encode, held_out)


def _encode_if_on_side(
    encode: Encode, held_out: HeldOut, record: Record | Skipped
) -> Document | Skipped:
    return encode(held_out(record))


def _read_all_shards(shards: Shards) -> Iterator[Record | Skipped]:
    for shard in range(len(shards)):
        for positioned in shards.read(shard, 0):
            yield positioned.record


def _describe_count_and_held_out_share(
    name: str, count: int, unit: str, held_out: HeldOut | None
) -> str:
    split = f", {held_out.share:.2%} of them held out" if held_out else ""
    return f"{name}, {count:,} {unit}{'s' * (count != 1)}{split}"
