"""A dataset of a run: records in one of their forms, with what makes documents of them.

Which data is meant is said by ``sources``; what documents are of use for by ``lanes`` and
``loading``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from flame_accel.data.cache.chunk_encoder import count_utf8_bytes
from flame_accel.data.cache.file_format import TARGETS, read_manifest
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.lanes.shuffled_stream import ShuffledStream
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.sources.opening import Opened
from flame_accel.data.sources.record_hashes import HeldOut
from flame_accel.data.sources.table import Table
from flame_accel.data.stages import Shards
from flame_accel.data.tokens.encoder import EncodedTable, Encoder
from flame_accel.data.tokens.tokenizer import tokenizer_identity


class Dataset(NamedTuple):
    """A dataset, opened, and what makes documents of its records."""

    records: Table | Shards | TokenCache
    """Texts or conversations by index, or in sequence; or what was tokenised before."""
    encoder: Encoder
    held_out: HeldOut | None
    """Which side of a split is meant; None: all documents."""
    conversations: bool
    """Whether the records are conversations, with the loss on some of their tokens only."""

    @property
    def num_documents(self) -> int | None:
        """Records by index, skipped ones included; None: in sequence, nobody has counted them."""
        return len(self.records) if isinstance(self.records, Table | TokenCache) else None

    def encode(self, record: Record | Skipped) -> Document | Skipped:
        """The document of a record of the wanted side."""
        return self.encoder(record if self.held_out is None else self.held_out(record))

    def source(self, *, seed: int, block: int) -> ShuffledTable | ShuffledStream:
        """The dataset as a source of lanes, see there."""
        if isinstance(self.records, TokenCache):
            return ShuffledTable(self.records, seed=seed)
        if isinstance(self.records, Table):
            return ShuffledTable(EncodedTable(self.records, self.encode), seed=seed)
        return ShuffledStream(self.records, self.encode, seed=seed, block=block)

    def in_order(self) -> Iterator[tuple[Document | Skipped, int]]:
        """What each record gives, once, and the length of its text in UTF-8."""
        if isinstance(self.records, TokenCache):
            for index in range(len(self.records)):
                yield self.records[index], self.records.document_bytes(index)
        else:
            for record in _in_order(self.records):
                yield self.encode(record), count_utf8_bytes(record)

    def __str__(self) -> str:
        unit = "shard" if self.num_documents is None else "document"
        size = f"{len(self.records):,} {unit}{'s' * (len(self.records) != 1)}"
        split = f", {self.held_out.share:.2%} of them held out" if self.held_out else ""
        return f"{self.records.name}, {size}{split}"


def open_dataset(opened: Opened, tokenizer: PreTrainedTokenizerBase, *, add_bos: bool) -> Dataset:
    """Say what makes documents of a source.

    Args:
        opened: the source, and which side of a split is meant.
        tokenizer: with an eos token.
        add_bos: whether documents start with bos.

    Raises:
        UserError: a token cache of another tokenizer, or one that is damaged.
    """
    source, held_out = opened
    encoder = Encoder(tokenizer, add_bos=add_bos)
    if not isinstance(source, Path):
        first = next((r for r in _in_order(source) if not isinstance(r, Skipped)), "")
        return Dataset(source, encoder, held_out, conversations=not isinstance(first, str))
    files = [name for shard in read_manifest(source)["shards"] for name in shard["files"]]
    conversations = any(name.endswith(TARGETS) for name in files)
    cache = TokenCache(
        source,
        tokenizer_identity=tokenizer_identity(tokenizer, conversations=conversations),
        add_bos=add_bos,
        held_out=held_out and (held_out.share, held_out.wanted == "evaluation"),
    )
    return Dataset(cache, encoder, held_out, conversations)


def _in_order(records: Table | Shards) -> Iterator[Record | Skipped]:
    if isinstance(records, Table):
        yield from map(records.__getitem__, range(len(records)))
        return
    for shard in range(len(records)):
        for record, _ in records.read(shard, 0):
            yield record
