"""Hashes of records, and fingerprints of data made from them.

A document has the same hash wherever it lies: in a file, a table or a token cache. Which documents
are held out by their hashes is decided in `held_out`.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from flame_accel.data.documents import Record, Skipped
from flame_accel.data.even_sampling import evenly_spread_indices

FINGERPRINT_DOCUMENTS = 512
"""Number of documents, evenly spread, that a fingerprint reads; smaller data is read whole."""
HASH_RANGE = 2**64
"""Every hash of a record is below it."""


def record_hash(record: Record) -> int:
    """BLAKE2b of the text in UTF-8, or of a conversation as canonical JSON; unsigned 64 bits."""
    if not isinstance(record, str):
        record = json.dumps(record, sort_keys=True, separators=(",", ":"))
    # a lone surrogate is not UTF-8: readers refuse it, a hash need not
    data = record.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def record_hash_or_zero(record: Record | Skipped) -> int:
    """`record_hash` of a record; 0 if it was skipped."""
    return 0 if isinstance(record, Skipped) else record_hash(record)


def fingerprint_from_sample(count: int, hash_of_record: Callable[[int], int]) -> str:
    """Fingerprint of indexed documents, 16 hexadecimal digits.

    Args:
        count: number of documents.
        hash_of_record: `record_hash` by index, 0 where the record is skipped.
    """
    content = hashlib.sha256(str(count).encode())
    for index in evenly_spread_indices(count, FINGERPRINT_DOCUMENTS):
        content.update(hash_of_record(index).to_bytes(8, "big"))
    return content.hexdigest()[:16]


def hash_list_as_json(facts: list[Any]) -> str:
    """Fingerprint of facts that JSON can hold, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
