"""The loader: the micro-batches of each optimizer step for one data-parallel rank.

Row ``l`` of a step comes from lane ``l``, whatever the number of ranks, workers and micro-batches:
a rank owns a contiguous share of the lanes, its worker processes share them out again, and
micro-batch ``m`` takes the ``m``-th ``micro_batch_size`` of the rank's rows. Workers send their
cursors with the rows, so that the state is that of the last step handed out, however far they have
read ahead. Moving batches to a device is the caller's part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flame_accel.config.errors import UserError
from flame_accel.data.lanes.lane import Cursor, lane_length
from flame_accel.data.loading.micro_batch import MicroBatch, build_micro_batch, pin
from flame_accel.data.loading.state import (
    Identity,
    accumulation_for,
    check_state,
    rank_state,
    read_cursors,
)
from flame_accel.data.loading.workers import LoaderOptions, Share, Stream, start_workers


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLayout:
    """How the rows of a step are dealt out."""

    micro_batch_size: int
    """Rows per rank and micro-batch."""
    accumulation: int
    """Micro-batches per step."""
    rank: int
    """Data-parallel rank of this process."""
    world_size: int
    """Number of data-parallel ranks."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a step on all ranks; the number of lanes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @property
    def lanes(self) -> range:
        """The lanes of this rank."""
        share = self.micro_batch_size * self.accumulation
        return range(self.rank * share, (self.rank + 1) * share)


class StepBatches:
    """The optimizer steps of one rank, without end.

    Each iteration goes on behind the last step handed out; only one iteration may be under way.

    Args:
        stream: what the lanes have in common; as many lanes as ``layout`` has rows per step.
        layout: how the rows of a step are dealt out.
        loader: processes and memory.
        identity: what a state must agree with to be continued here.
        state: a merged state to continue; None starts at the beginning.

    Raises:
        UserError: fewer documents than lanes, or a state that cannot be continued.
    """

    def __init__(
        self,
        stream: Stream,
        layout: StepLayout,
        loader: LoaderOptions,
        *,
        identity: Identity,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        assert stream.num_lanes == layout.rows_per_step
        if stream.order.num_documents < stream.num_lanes:
            raise _too_few_documents(stream.order.num_documents, layout)
        self._stream = stream
        self._layout = layout
        self._loader = loader
        self._identity = identity
        self._steps = 0
        self._cursors = [Cursor()] * len(layout.lanes)
        self._kept: Iterator[Share | UserError] | None = None
        if state is not None:
            check_state(state, identity)
            _check_rows_per_step(state["rows_per_step"], layout)
            self._cursors = read_cursors(state, layout.lanes)
            self._steps = state["steps"]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yield the ``accumulation`` micro-batches of each step."""
        layout = self._layout
        shares = self._kept
        if shares is None:
            shares = start_workers(self._stream, layout.lanes, self._cursors, self._loader)
        if self._loader.persistent_workers:
            self._kept = shares
        size = layout.micro_batch_size
        num_shares = max(1, self._loader.workers_for(layout.lanes))
        pinned = self._loader.pin_memory and torch.cuda.is_available()
        try:
            while True:
                step = [_or_raise(next(shares)) for _ in range(num_shares)]
                rows = [row for share in step for row in share.rows]
                batches = [
                    build_micro_batch(rows[i : i + size], self._stream.packing)
                    for i in range(0, len(rows), size)
                ]
                self._cursors = [cursor for share in step for cursor in share.cursors]
                self._steps += 1
                yield [pin(batch) for batch in batches] if pinned else batches
        finally:
            # the frame may live on in a traceback, and would keep the workers
            del shares

    def state_dict(self) -> dict[str, Any]:
        """State of this rank's lanes behind the last step handed out; see ``merge_states``."""
        return rank_state(
            self._identity,
            rows_per_step=self._stream.num_lanes,
            steps=self._steps,
            first_lane=self._layout.lanes.start,
            cursors=self._cursors,
        )

    @property
    def epoch(self) -> float:
        """Passes over the data so far, of this rank's lanes, by documents."""
        lengths = [
            lane_length(self._stream.order.num_documents, lane, self._stream.num_lanes)
            for lane in self._layout.lanes
        ]
        read = sum(c.epoch * n + c.position for c, n in zip(self._cursors, lengths, strict=True))
        return read / sum(lengths)

    @property
    def skipped_documents(self) -> int:
        """Documents without text that this rank's lanes have passed over."""
        return sum(cursor.skipped for cursor in self._cursors)


def _or_raise(item: Share | UserError) -> Share:
    if isinstance(item, UserError):
        raise item
    return item


def _check_rows_per_step(saved: int, layout: StepLayout) -> None:
    if saved == layout.rows_per_step:
        return
    accumulation = accumulation_for(
        saved, micro_batch_size=layout.micro_batch_size, world_size=layout.world_size
    )
    raise UserError(
        f"a step has {layout.rows_per_step} rows (training.batch_size {layout.micro_batch_size} x "
        f"{layout.world_size} ranks x training.gradient_accumulation_steps {layout.accumulation}), "
        f"the checkpoint's have {saved}",
        where="training.gradient_accumulation_steps",
        remedy=f"use training.gradient_accumulation_steps {accumulation}",
    )


def _too_few_documents(num_documents: int, layout: StepLayout) -> UserError:
    return UserError(
        f"{num_documents} documents are fewer than the {layout.rows_per_step} rows of a step "
        f"(training.batch_size {layout.micro_batch_size} x {layout.world_size} ranks x "
        f"training.gradient_accumulation_steps {layout.accumulation}): each row of a step reads "
        "documents of its own",
        where="training.dataset",
        remedy="use fewer rows per step, or more documents: a plain text file is one document, a "
        "line of a .jsonl file is one",
    )
