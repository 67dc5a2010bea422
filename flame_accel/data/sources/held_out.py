"""Which documents are held out of training for evaluation: a split by the hash of the record.

The same document is on the same side in every form of the data. Which datasets are divided is
decided in `opening`.
"""

from typing import Literal, NamedTuple

from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.record_hashes import HASH_RANGE, record_hash


def is_held_out(digest: int, share: float) -> bool:
    """Whether the document with this hash is in the share (0 to 1) that is held out."""
    return digest < share * HASH_RANGE


class HeldOut(NamedTuple):
    """One side of a split by hash; the documents of the other side are skipped."""

    share: float
    """Share of the documents that belongs to evaluation, 0 to 1."""
    wanted: Literal["training", "evaluation"]
    """The side to keep."""

    def keeps(self, digest: int) -> bool:
        """Whether a record with this hash is on the side to keep."""
        return is_held_out(digest, self.share) == (self.wanted == "evaluation")

    def __call__(self, record: Record | Skipped) -> Record | Skipped:
        """The record, or a `Skipped` if it belongs to the other side."""
        if isinstance(record, Skipped):
            return record
        return record if self.keeps(record_hash(record)) else Skipped("held out")
