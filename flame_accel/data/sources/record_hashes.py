"""Hashes of records: which side of a split a document is on, and what a source calls itself.

A document hashes alike wherever it lies: in a file, a table or a token cache. No reading here.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Literal, NamedTuple

from flame_accel.data.documents import Record, Skipped

FINGERPRINT_DOCUMENTS = 512
"""How many documents, evenly spread, a fingerprint reads; smaller data is read whole."""
HASH_RANGE = 2**64
"""Hashes of records are below it."""


def record_hash(record: Record) -> int:
    """Unsigned 64 bit BLAKE2b of the text in UTF-8, of a conversation as canonical JSON."""
    if not isinstance(record, str):
        record = json.dumps(record, sort_keys=True, separators=(",", ":"))
    # half a surrogate pair is no UTF-8; readers refuse it, a hash need not
    data = record.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def is_held_out(digest: int, share: float) -> bool:
    """Whether the document of this hash is among the share (0 to 1) that is held out."""
    return digest < share * HASH_RANGE


def sample_fingerprint(count: int, hash_of: Callable[[int], int]) -> str:
    """What documents by index call themselves: 16 hexadecimal digits.

    Args:
        count: number of documents.
        hash_of: `record_hash` of a document, 0 where it is skipped.
    """
    content = hashlib.sha256(str(count).encode())
    sampled = min(count, FINGERPRINT_DOCUMENTS)
    for i in range(sampled):
        content.update(hash_of(i * count // sampled).to_bytes(8, "big"))
    return content.hexdigest()[:16]


class HeldOut(NamedTuple):
    """One side of a split by hash: the documents of the other are passed over."""

    share: float
    """How much of the data is evaluation's, 0 to 1."""
    wanted: Literal["training", "evaluation"]
    """The side to keep."""

    def __call__(self, record: Record | Skipped) -> Record | Skipped:
        """The record, or what stands where one of the other side was."""
        if isinstance(record, Skipped):
            return record
        held_out = is_held_out(record_hash(record), self.share)
        return record if held_out == (self.wanted == "evaluation") else Skipped("held out")
