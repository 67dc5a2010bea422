"""The batches of an evaluation: one pass over whole documents, the same for any number of ranks.

Rows are packed once, as in training, and kept: every evaluation of a run uses the same ones. Losses
are computed in `flame_accel.evaluation`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import BadRecordCounter, SkipPolicy
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document, EncodedRecord, Skipped
from flame_accel.data.lanes.best_fit_packing import Segment, Window, build_padded_row
from flame_accel.data.lanes.lane import build_lane
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.loading.micro_batch import MicroBatch, stack_rows_with_unshifted_masked_labels


class EvaluationBatches:
    """The evaluation batches of one rank; equally many on each, so that collective calls match.

    Args:
        rows: all rows of the evaluation.
        packing: how they were packed.
        batch_size: rows per rank and batch.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        num_target_bytes: length in UTF-8 of the text of the targets, over all ranks.

    Attributes:
        num_target_bytes: see there.
        row_length: tokens in a row.
    """

    def __init__(
        self,
        rows: list[Row],
        packing: Packing,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        num_target_bytes: int,
    ) -> None:
        self.num_target_bytes = num_target_bytes
        self.row_length = packing.seq_len
        self._packing = packing
        self._batch_size = batch_size
        empty = build_padded_row([], packing.seq_len, packing.padding)
        rows = rows + [empty] * (-len(rows) % (batch_size * world_size))
        self._rows = [row for i, row in enumerate(rows) if i // batch_size % world_size == rank]

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the batches; ``num_targets`` is 0 where a batch is all padding."""
        for i in range(0, len(self._rows), self._batch_size):
            yield stack_rows_with_unshifted_masked_labels(
                self._rows[i : i + self._batch_size], self._packing
            )


def pack_evaluation_batches(
    records: Iterable[EncodedRecord],
    packing: Packing,
    *,
    name: str,
    policy: SkipPolicy,
    tokens_per_batch: int,
    rank: int,
    world_size: int,
    max_tokens: int = 0,
    one_document_per_row: bool = False,
) -> EvaluationBatches:
    """Pack whole documents, in their order, until there are `max_tokens` tokens.

    Tokens are kept in memory (all of them while packing, then this rank's share).

    Args:
        records: what each record gives, and the length in UTF-8 of the text of its targets; read
            once.
        packing: how rows are filled.
        name: how messages name the data.
        policy: what happens to records that give no document.
        tokens_per_batch: of a rank; a batch has as many rows as fit, at least one.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        max_tokens: number of tokens that is enough; 0: all documents.
        one_document_per_row: rows are as long as the longest document, at most `packing.seq_len`,
            where documents are cut; for packings without boundaries only.

    Raises:
        UserError: no document at all, or a record that the policy does not allow.
    """
    documents: list[Document] = []
    bad_records = BadRecordCounter(policy.max_bad)
    num_skipped = num_tokens = num_target_bytes = 0
    for document, num_text_bytes in records:
        if isinstance(document, Skipped):
            bad_records.raise_count_or_ignore_by_policy(document, policy, name)
            num_skipped += 1
            continue
        documents.append(document)
        num_tokens += len(document.tokens)
        num_target_bytes += num_text_bytes
        if max_tokens and num_tokens >= max_tokens:
            break
    if not documents:
        raise UserError(
            f"none of its {num_skipped} documents can be evaluated on",
            where=name,
            remedy="name other data, or raise evaluation.held_out_share if these are held out",
        )
    if one_document_per_row:
        assert not packing.varlen
        longest = max(2, *(len(document.tokens) for document in documents))
        packing = replace(packing, seq_len=min(longest, packing.seq_len))
        rows = [pad_single_document(document, packing) for document in documents]
    else:
        rows = pack_single_pass(documents, packing)
    return EvaluationBatches(
        rows,
        packing,
        batch_size=max(1, tokens_per_batch // packing.seq_len),
        rank=rank,
        world_size=world_size,
        num_target_bytes=num_target_bytes,
    )


class _DocumentsThenPaddingReader:
    """Reads documents in their own order, and padding behind them."""

    cursor = SourceCursor()
    approximate_epochs_read = 0.0

    def __init__(self, documents: Sequence[Document], padding: Document) -> None:
        self._documents = documents
        self._padding = padding
        self._position = 0

    @property
    def is_done(self) -> bool:
        return self._position >= len(self._documents)

    def peek(self) -> Document:
        return self._padding if self.is_done else self._documents[self._position]

    def consume_peeked(self) -> None:
        self._position += 1


def pad_single_document(document: Document, packing: Packing) -> Row:
    """The row of one document, cut or padded to the length of rows."""
    segment = Segment(document, 0, min(len(document.tokens), packing.seq_len))
    return build_padded_row([segment], packing.seq_len, packing.padding)


def pack_single_pass(documents: Sequence[Document], packing: Packing) -> list[Row]:
    """The rows of a single pass over documents; the rest of the last row is padding."""
    size = packing.seq_len
    if packing.best_fit:
        window = Window(size, min(packing.context_len or size, size))
        for document in documents:
            window.add_document(document)
        return [
            build_padded_row(segments, size, packing.padding)
            for segments in window.assign_segments_to_rows()
        ]
    reader = _DocumentsThenPaddingReader(
        documents, Document(np.full(size, packing.padding, dtype=np.int32), np.zeros(size, bool))
    )
    lane = build_lane([reader], [1.0], packing, LaneCursor(sources=(reader.cursor,)))
    rows: list[Row] = []
    while not reader.is_done:
        rows.append(lane.next_row())
    return rows
