"""Ranges of records to the bytes of a token cache, by one process or several.

A chunk is a fixed range of documents, which depends on the data only. Chunks come in their order,
whoever encodes them, so that what is written does not depend on the number of processes.
"""

import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.cache.layout import (
    DAMAGED,
    EMPTY,
    PLAIN,
    RECORD,
    WITH_TARGETS,
    pack_record,
)
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.sources.record_hashes import record_hash

CHUNK_BYTES = 1 << 19
"""Text in a chunk, about: a second or less of work."""
MAX_CHUNK_DOCUMENTS = 1 << 13
BATCH_BYTES = 1 << 20
"""Text that is tokenised at a time, as long as it is more than one document: the tokenizer needs a
hundred times as much memory."""
SAMPLED_DOCUMENTS = 64
CHUNKS_AHEAD = 4
"""Chunks for each process that are waited for or wait to be written."""


class Records(Protocol):
    """Texts by index, as `sources.table.Table`; can be pickled."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record | Skipped: ...


class EncodeMany(Protocol):
    """`tokens.encoder.Encoder`; can be pickled."""

    def encode_many(self, records: Sequence[Record | Skipped], /) -> list[Document | Skipped]:
        """Documents of records, in their order."""
        ...


class Chunk(NamedTuple):
    """Successive documents as bytes."""

    index: np.ndarray
    """`RECORD` [documents], with offsets from the start of the chunk."""
    tokens: bytes
    targets: bytes | None
    """A byte for each token; None: the loss is for all."""
    skipped: dict[int, Skipped]
    """By their place in the chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkEncoder:
    """Encodes any range of the records."""

    records: Records
    encoder: EncodeMany
    dtype: np.dtype

    def __call__(self, documents: range) -> Chunk:
        """Encode a range."""
        index = bytearray()
        tokens: list[bytes] = []
        targets: list[bytes] = []
        skipped: dict[int, Skipped] = {}
        offset, any_targets = 0, False
        for place, (record, document) in enumerate(self._encoded(documents)):
            length = size = checksum = 0
            if isinstance(document, Skipped):
                kind = EMPTY if document.why == "empty" else DAMAGED
                where = document.where or f"{self.records.name}, record {documents[place]}"
                skipped[place] = document._replace(where=where)
            else:
                length, size, kind = len(document.tokens), text_bytes(record), PLAIN
                tokens.append(document.tokens.astype(self.dtype).tobytes())
                checksum = zlib.crc32(tokens[-1])
                if document.targets is None:
                    targets.append(b"\1" * length)
                else:
                    kind, any_targets = WITH_TARGETS, True
                    targets.append(document.targets.astype(bool).tobytes())
                    checksum = zlib.crc32(targets[-1], checksum)
            index += pack_record(hash_or_0(record), length, size, kind, checksum, offset)
            offset += length
        return Chunk(
            np.frombuffer(index, RECORD),
            b"".join(tokens),
            b"".join(targets) if any_targets else None,
            skipped,
        )

    def _encoded(self, documents: range) -> Iterator[tuple[Record | Skipped, Document | Skipped]]:
        batch: list[Record | Skipped] = []
        size = 0
        for index in documents:
            record = self.records[index]
            size += text_bytes(record)
            if batch and size > BATCH_BYTES:
                yield from zip(batch, self.encoder.encode_many(batch), strict=True)
                batch, size = [], text_bytes(record)
            batch.append(record)
        yield from zip(batch, self.encoder.encode_many(batch), strict=True)


def hash_or_0(record: Record | Skipped) -> int:
    """`record_hash`; 0 of what is skipped."""
    return 0 if isinstance(record, Skipped) else record_hash(record)


def text_bytes(record: Record | Skipped) -> int:
    """Length in UTF-8 of a text, or of what is said in a conversation; 0 of what is skipped."""
    if isinstance(record, str):
        return len(record.encode("utf-8", "surrogatepass"))
    if isinstance(record, Skipped):
        return 0
    contents = (message["content"] for message in record)
    return sum(text_bytes(content) for content in contents if isinstance(content, str))


def chunk_documents(records: Records) -> int:
    """Documents in a chunk, by the mean size of a few that are evenly spread."""
    count = min(len(records), SAMPLED_DOCUMENTS)
    sizes = [text_bytes(records[i * len(records) // count]) for i in range(count)]
    return min(max(CHUNK_BYTES * count // max(sum(sizes), 1), 1), MAX_CHUNK_DOCUMENTS)


def encode_in_order(
    encode: ChunkEncoder, ranges: Iterable[range], processes: int
) -> Generator[Chunk, None, None]:
    """Encode ranges, in their order, in so many processes beside this one; 1: in this one.

    Raises:
        UserError: a process was killed.
    """
    if processes == 1:
        yield from map(encode, ranges)
        return
    pool = ProcessPoolExecutor(processes, initializer=_begin_worker, initargs=(encode,))
    pending = deque()
    try:
        for documents in ranges:
            pending.append(pool.submit(_encode_in_worker, documents))
            if len(pending) >= CHUNKS_AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {processes} processes was killed; the usual reason is a lack of memory",
            remedy="run the same command again with fewer --processes: it goes on from here",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encode: ChunkEncoder | None = None
"""What this process encodes with, if it is a worker."""


def _begin_worker(encode: ChunkEncoder) -> None:
    global _encode
    _encode = encode
    # processes share out the cores already
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # a signal to the whole group is the main process's to answer, which then ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(documents: range) -> Chunk:
    assert _encode is not None
    return _encode(documents)
