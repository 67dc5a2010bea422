"""Micro-batches, as a model gets them: `input_ids`, `labels` and, with varlen, `cu_seqlens`.

Shapes: `B` rows, `T` tokens in a row. Labels are at the positions of their tokens (the model shifts
them) and -100 where a row or segment starts, so that `num_targets` is the same before and after the
shift. There is never an `attention_mask`: in addition to `cu_seqlens` it would override them.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from flame_accel.data.lanes.rows import Packing, Row

IGNORED_LABEL = -100
"""The label that the loss functions of torch, transformers and fla ignore."""


class _Rows(TypedDict):
    input_ids: torch.Tensor
    labels: torch.Tensor
    num_targets: int


class MicroBatch(_Rows, total=False):
    """Input of one forward pass: int64 [B, T], with varlen [1, B * T] and int32 [segments + 1]."""

    cu_seqlens: torch.Tensor


def stack_rows_with_unshifted_masked_labels(rows: Sequence[Row], packing: Packing) -> MicroBatch:
    """Stack rows into a micro-batch, int64 [B, T], with varlen [1, B * T].

    Args:
        rows: rows of `packing.seq_len` tokens, in order.
        packing: how they were filled.
    """
    input_ids = np.stack([row.tokens for row in rows], dtype=np.int64)
    labels = input_ids.copy()
    for row, row_labels in zip(rows, labels, strict=True):
        if row.targets is not None:
            row_labels[~row.targets] = IGNORED_LABEL
    starts = [
        index * packing.seq_len + start for index, row in enumerate(rows) for start in row.starts
    ]
    labels.reshape(-1)[starts] = IGNORED_LABEL
    shape = (1, -1) if packing.varlen else input_ids.shape
    batch: MicroBatch = {
        "input_ids": torch.from_numpy(input_ids.reshape(shape)),
        "labels": torch.from_numpy(labels.reshape(shape)),
        "num_targets": int(np.count_nonzero(labels != IGNORED_LABEL)),
    }
    if packing.varlen:
        batch["cu_seqlens"] = torch.tensor([*starts, input_ids.size], dtype=torch.int32)
    return batch


def pin_memory(batch: MicroBatch) -> MicroBatch:
    """Copy a micro-batch into page-locked memory, from which copies to a GPU do not block."""
    pinned = batch.copy()
    pinned["input_ids"] = batch["input_ids"].pin_memory()
    pinned["labels"] = batch["labels"].pin_memory()
    if "cu_seqlens" in batch:
        pinned["cu_seqlens"] = batch["cu_seqlens"].pin_memory()
    return pinned
