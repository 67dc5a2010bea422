"""Steps of numbered documents, and what their micro-batches hold."""

import json
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.step_batches import StepBatches, StepLayout
from flame_accel.data.loading.stream_state import merge_rank_states
from flame_accel.data.loading.workers import LoaderOptions

NUM_LANES = 16


LENGTHS = [1 + (37 * d * d) % 61 for d in range(50)]


FIXED = Packing(seq_len=16)


VARLEN = Packing(seq_len=16, context_len=11)


STEPS = 14
"""More than an epoch: 50 documents of 31 tokens on average, 240 targets in a step."""


def tokens_of(document: int) -> np.ndarray:
    return np.arange(1000 * document, 1000 * document + LENGTHS[document], dtype=np.int32)


class Numbers:
    """Documents whose tokens say where they are from."""

    name = "numbers"
    sampled_records_fingerprint = "numbers"

    def __init__(self, skipped: Mapping[int, Skipped] | None = None) -> None:
        self.skipped = skipped or {}

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Document | Skipped:
        return self.skipped.get(index) or Document(tokens_of(index))


def build(
    packing: Packing,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    state: Mapping[str, Any] | None = None,
    identity: Mapping[str, int] | None = None,
    num_lanes: int = NUM_LANES,
    documents: Numbers | None = None,
    skipped: Mapping[int, Skipped] | None = None,
    max_bad: int | None = None,
    **loader: Any,
) -> StepBatches:
    layout = StepLayout(
        micro_batch_size=num_lanes // world_size // accumulation,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
    )
    lanes = Lanes(
        sources=[ShuffledTable(documents or Numbers(skipped), seed=1)],
        shares=[1.0],
        packing=packing,
        num_lanes=num_lanes,
        policy=SkipPolicy(max_bad),
    )
    return StepBatches(
        lanes,
        layout,
        LoaderOptions(**loader),
        identity=identity or {"training.seed": 1},
        state=state,
    )


Step = list[tuple[list[int], list[int], list[int]]]


def content(micro_batches: list, packing: Packing) -> Step:
    """Rows of a rank's step: their tokens, labels and segment starts."""
    rows: Step = []
    for batch in micro_batches:
        assert "attention_mask" not in batch
        ids = batch["input_ids"].view(-1, packing.seq_len)
        labels = batch["labels"].view(-1, packing.seq_len)
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["num_targets"] == int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
        starts = np.arange(0, ids.numel(), packing.seq_len)
        if packing.varlen:
            assert batch["input_ids"].shape == (1, ids.numel())
            assert batch["cu_seqlens"].dtype == torch.int32
            assert batch["cu_seqlens"][-1] == ids.numel()
            starts = batch["cu_seqlens"][:-1].numpy()
        for i in range(len(ids)):
            here = starts[(starts // packing.seq_len) == i] - i * packing.seq_len
            rows.append((ids[i].tolist(), labels[i].tolist(), here.tolist()))
    return rows


def all_ranks(
    packing: Packing, steps: int, *, world_size: int = 1, **options: Any
) -> tuple[list[Step], dict]:
    """The rows of each step over all ranks, and the merged state after them, through JSON."""
    ranks = [build(packing, rank=r, world_size=world_size, **options) for r in range(world_size)]
    drawn = [[content(step, packing) for step in islice(rank, steps)] for rank in ranks]
    merged = merge_rank_states([rank.state_dict() for rank in reversed(ranks)])
    return [[*chain(*parts)] for parts in zip(*drawn, strict=True)], json.loads(json.dumps(merged))
