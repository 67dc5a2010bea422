"""Documents of letters, a reader of them, and rows packed and traced from them."""

from collections.abc import Sequence

import numpy as np

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.row_tracing import TracedLane, TracedRow
from flame_accel.data.stages import DocumentReader

EOS = 256


ROW = 32


PACKINGS = {
    "rows": Packing(seq_len=ROW),
    "varlen": Packing(seq_len=ROW, context_len=20),
    "best_fit": Packing(seq_len=ROW, context_len=20, best_fit=True, padding=7),
}


class LetterDocuments:
    """Document i is bytes of its number and eos; of every third only the second half is learnt."""

    name = "fake"
    sampled_records_fingerprint = ""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document | Skipped:
        length = self.lengths[index]
        if not length:
            return Skipped("empty")
        tokens = np.array([65 + index % 26] * (length - 1) + [EOS])
        return Document(tokens, np.arange(length) >= length // 2 if index % 3 == 0 else None)


def reader_in_order(documents: LetterDocuments) -> DocumentReader:
    """The only lane's reader, with the documents in their own order in the first epoch."""
    source = ShuffledTable(documents, seed=0)
    source._order = _Identity(len(documents))
    return open_only_reader(source)


class _Identity:
    def __init__(self, num_documents: int) -> None:
        self.num_documents = num_documents

    def document_indices_at(self, epoch: int, positions: Sequence[int]) -> list[int]:
        return list(positions)


def open_only_reader(source: ShuffledTable) -> DocumentReader:
    return source.open_reader(0, 1, SourceCursor(), SkipPolicy(), lambda skipped: None)


def trace_rows(lengths: Sequence[int], packing: Packing, num_rows: int) -> list[TracedRow]:
    lane = TracedLane([reader_in_order(LetterDocuments(lengths))], [1.0], packing, 0)
    return [lane.next_row() for _ in range(num_rows)]
