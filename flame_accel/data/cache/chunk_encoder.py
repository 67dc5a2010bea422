"""Encodes ranges of records into the bytes of a token cache, in one process or in several.

A chunk is a range of successive records, chosen from the data alone. Chunks are returned in order
whichever process encodes them, so the bytes do not depend on the number of processes.
"""

import os
import signal
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.cache.file_format import (
    DAMAGED,
    EMPTY,
    INDEX_DTYPE,
    PLAIN,
    WITH_TARGETS,
    pack_index_entry_with_own_crc,
)
from flame_accel.data.documents import Document, Record, Skipped, count_utf8_bytes
from flame_accel.data.even_sampling import evenly_spread_indices
from flame_accel.data.sources.record_hashes import record_hash_or_zero
from flame_accel.data.stages import IndexedRecords
from flame_accel.data.worker_processes import start_exit_with_parent_thread

CHUNK_BYTES = 1 << 19
"""Approximate text of a chunk: at most about a second of work."""
MAX_CHUNK_DOCUMENTS = 1 << 13
BATCH_BYTES = 1 << 20
"""Most text in one call of the tokenizer, unless one document has more: a call takes about a
hundred times as much memory."""
NUM_SAMPLED_RECORDS = 64
CHUNKS_AHEAD = 4
"""Chunks per process that are being encoded or wait to be written."""


class BatchEncoder(Protocol):
    """`tokens.encoder.Encoder`; can be pickled."""

    def encode_many(self, records: Sequence[Record | Skipped], /) -> list[Document | Skipped]:
        """Encode records; documents in the same order."""
        ...


class EncodedChunk(NamedTuple):
    """Successive documents as bytes."""

    index: np.ndarray
    """`INDEX_DTYPE` [documents], with offsets from the start of the chunk."""
    tokens: bytes
    targets: bytes | None
    """A byte for each token; None: all tokens are targets."""
    skipped: dict[int, Skipped]
    """Skipped records, by their position in the chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkEncoder:
    """Encodes any range of the records."""

    records: IndexedRecords
    encoder: BatchEncoder
    dtype: np.dtype
    """Of the tokens in the cache."""

    def encode_chunk(self, indices: range) -> EncodedChunk:
        """Encode the records of a range."""
        index = bytearray()
        tokens: list[bytes] = []
        targets: list[bytes] = []
        skipped: dict[int, Skipped] = {}
        offset, any_targets = 0, False
        for position, (record, document) in enumerate(self._encode_in_batches(indices)):
            length = num_bytes = checksum = 0
            if isinstance(document, Skipped):
                kind = EMPTY if document.why == "empty" else DAMAGED
                where = document.where or f"{self.records.name}, record {indices[position]}"
                skipped[position] = document._replace(where=where)
            else:
                length, num_bytes, kind = len(document.tokens), count_utf8_bytes(record), PLAIN
                tokens.append(document.tokens.astype(self.dtype).tobytes())
                checksum = zlib.crc32(tokens[-1])
                if document.targets is None:
                    targets.append(b"\1" * length)
                else:
                    kind, any_targets = WITH_TARGETS, True
                    targets.append(document.targets.astype(bool).tobytes())
                    checksum = zlib.crc32(targets[-1], checksum)
            hashed = record_hash_or_zero(record)
            index += pack_index_entry_with_own_crc(
                hashed, length, num_bytes, kind, checksum, offset
            )
            offset += length
        return EncodedChunk(
            np.frombuffer(index, INDEX_DTYPE),
            b"".join(tokens),
            b"".join(targets) if any_targets else None,
            skipped,
        )

    def _encode_in_batches(
        self, indices: range
    ) -> Iterator[tuple[Record | Skipped, Document | Skipped]]:
        batch: list[Record | Skipped] = []
        size = 0
        for index in indices:
            record = self.records[index]
            size += count_utf8_bytes(record)
            if batch and size > BATCH_BYTES:
                yield from zip(batch, self.encoder.encode_many(batch), strict=True)
                batch, size = [], count_utf8_bytes(record)
            batch.append(record)
        yield from zip(batch, self.encoder.encode_many(batch), strict=True)


def choose_records_per_chunk(records: IndexedRecords) -> int:
    """Records per chunk, by the mean size of a few evenly spread records."""
    sampled = evenly_spread_indices(len(records), NUM_SAMPLED_RECORDS)
    num_bytes = sum(count_utf8_bytes(records[i]) for i in sampled)
    return min(max(CHUNK_BYTES * len(sampled) // max(num_bytes, 1), 1), MAX_CHUNK_DOCUMENTS)


def encode_chunks_in_order(
    encoder: ChunkEncoder, ranges: Iterable[range], num_processes: int
) -> Generator[EncodedChunk, None, None]:
    """Encode ranges of records and yield the chunks in the order of the ranges.

    Args:
        encoder: encodes one range.
        ranges: of record indices.
        num_processes: worker processes; with 1 this process does the work.

    Raises:
        UserError: a worker was killed.
    """
    if num_processes == 1:
        yield from map(encoder.encode_chunk, ranges)
        return
    pool = ProcessPoolExecutor(
        num_processes,
        initializer=_adopt_encoder_ignore_signals_exit_with_parent,
        initargs=(encoder,),
    )
    pending = deque()
    try:
        for indices in ranges:
            pending.append(pool.submit(_encode_chunk_in_worker, indices))
            if len(pending) >= CHUNKS_AHEAD * num_processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {num_processes} processes was killed, most likely because memory ran out",
            where="--processes",
            remedy="run the same command again with fewer --processes: it continues from here",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker_encoder: ChunkEncoder | None = None
"""Set in worker processes only."""


def _adopt_encoder_ignore_signals_exit_with_parent(encoder: ChunkEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    # the workers already keep all cores busy
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # a signal sent to the whole group is handled by the main process, which then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_exit_with_parent_thread()


def _encode_chunk_in_worker(indices: range) -> EncodedChunk:
    assert _worker_encoder is not None
    return _worker_encoder.encode_chunk(indices)
