"""Records, an encoder of bytes, and helpers to open, read and compare token caches of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flame_accel.data.cache.cache_writer import CacheOrigin
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.sources.record_hashes import record_hash

EOS = 256
ORIGIN = CacheOrigin(
    tokenizer_identity="bytes", vocabulary_size=257, add_bos=False, source={"dataset": "some"}
)


class RecordList(list[Record | Skipped]):
    name = "texts"
    sampled_records_fingerprint = ""


class ByteEncoder:
    """The bytes of a text and eos; of a conversation, the loss is for what the assistant says."""

    def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
        return [self.encode(record) for record in records]

    def encode(self, record: Record | Skipped) -> Document | Skipped:
        if isinstance(record, Skipped):
            return record
        if isinstance(record, str):
            return Document(np.array([*record.encode(), EOS], dtype=np.int32))
        said = [
            (byte, message["role"] == "assistant")
            for message in record
            for byte in message["content"].encode()
        ]
        tokens, targets = zip(*said, strict=True)
        return Document(np.array(tokens, dtype=np.int32), np.array(targets))


def make_records(count: int = 300) -> RecordList:
    texts = RecordList(f"{i} " + "abc \u00e9" * (i * 37 % 101) for i in range(count))
    texts[7] = Skipped("empty", "texts, record 7", "no text")
    texts[250] = Skipped("empty", "texts, record 250", "no text")
    return texts


def open_token_cache(folder: Path, **changes: Any) -> TokenCache:
    return TokenCache(folder, **{"tokenizer_identity": "bytes", "add_bos": False, **changes})


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_document(one: Document | Skipped, other: Document | Skipped) -> bool:
    if isinstance(one, Skipped) or isinstance(other, Skipped):
        return type(one) is type(other) and one[0] == other[0]
    if (one.targets is None) != (other.targets is None):
        return False
    targets = one.targets is None or np.array_equal(one.targets, other.targets)
    return targets and np.array_equal(one.tokens, other.tokens)


def hash_of_record(record: Record | Skipped) -> int:
    return 0 if isinstance(record, Skipped) else record_hash(record)


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path: Path, position: int) -> None:
    path.write_bytes(path.read_bytes()[:position])


def delete(path: Path, position: int) -> None:
    path.unlink()
