"""The rows of an evaluation: one pass over whole documents, the same for any number of ranks.

Rows are packed once, as in training, and kept; every evaluation of a run sees the same ones.
Losses and their means are not computed here.
"""

from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase

from flame_accel.data.lanes.lane import Cursor, Lane, Packing, Row
from flame_accel.data.loading.micro_batch import MicroBatch, build_micro_batch
from flame_accel.data.sources.documents import Documents
from flame_accel.data.tokens.tokenizer import DocumentEncoder

PADDING = -1
"""Token id of padding, which no tokenizer gives to a token."""


class EvaluationBatches:
    """The batches of one rank; as many on each rank, so that collective calls match.

    Args:
        rows: all rows of the evaluation, with ``PADDING`` where documents have ended.
        packing: how they were filled.
        batch_size: rows per rank and batch.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        pad_token_id: what the model sees as padding.
        num_documents: documents in all rows.
        num_tokens: their tokens, with bos and eos.
        num_bytes: length of their texts in UTF-8.
    """

    def __init__(
        self,
        rows: list[Row],
        packing: Packing,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
        num_documents: int,
        num_tokens: int,
        num_bytes: int,
    ) -> None:
        self.num_documents = num_documents
        self.num_tokens = num_tokens
        self.num_bytes = num_bytes
        self._packing = packing
        self._batch_size = batch_size
        self._padding = (PADDING, pad_token_id)
        empty = Row(np.full(packing.seq_len, PADDING, dtype=np.int32), [0])
        rows = rows + [empty] * (-len(rows) % (batch_size * world_size))
        self._rows = [row for i, row in enumerate(rows) if i // batch_size % world_size == rank]

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the batches; ``num_targets`` is 0 where a batch is all padding."""
        for i in range(0, len(self._rows), self._batch_size):
            yield build_micro_batch(
                self._rows[i : i + self._batch_size], self._packing, padding=self._padding
            )


def evaluation_batches(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    packing: Packing,
    *,
    add_bos: bool,
    batch_size: int,
    rank: int,
    world_size: int,
    max_tokens: int = 0,
) -> EvaluationBatches:
    """Pack whole documents, in their order, until there are ``max_tokens`` tokens; 0 takes all.

    Tokens are kept in memory (4 bytes each, all of them while packing, then this rank's share).
    """
    encode = DocumentEncoder(documents, tokenizer, add_bos=add_bos)
    tokens: list[np.ndarray] = []
    num_tokens = num_bytes = 0
    for index in range(len(documents)):
        if max_tokens and num_tokens >= max_tokens:
            break
        tokens.append(encode(index))
        num_tokens += len(tokens[-1])
        num_bytes += len(documents[index].encode("utf-8"))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(pad, int)
    return EvaluationBatches(
        pack_once(tokens, packing),
        packing,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad,
        num_documents=len(tokens),
        num_tokens=num_tokens,
        num_bytes=num_bytes,
    )


class _InOrder:
    """Documents in their own order."""

    def __init__(self, num_documents: int) -> None:
        self.num_documents = num_documents

    def document(self, epoch: int, position: int) -> int:
        return position


def pack_once(documents: list[np.ndarray], packing: Packing) -> list[Row]:
    """Rows of a single pass; the last is filled up with ``PADDING``.

    The padding is a document behind the last one, long enough for any row, so that a lane packs it.
    """
    padding = np.full(packing.seq_len, PADDING, dtype=np.int32)
    lane = Lane(
        [*documents, padding].__getitem__,
        _InOrder(len(documents) + 1),
        packing,
        lane=0,
        num_lanes=1,
        cursor=Cursor(),
    )
    rows: list[Row] = []
    while lane.cursor.epoch == 0 and lane.cursor.position < len(documents):
        rows.append(lane.next_row())
    return rows
