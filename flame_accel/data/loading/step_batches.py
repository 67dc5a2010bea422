"""The loader: the micro-batches of each optimizer step for one data-parallel rank.

Row ``l`` of a step comes from lane ``l``, whatever the number of ranks, workers and micro-batches:
a rank owns a contiguous share of the lanes, its worker processes share them out again, and
micro-batch ``m`` takes the ``m``-th ``micro_batch_size`` of the rank's rows. Workers send their
cursors with the rows, so that the state is that of the last step handed out, however far they have
read ahead. Moving batches to a device is the caller's part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import BadRecordCounter
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.loading.micro_batch import MicroBatch, build_micro_batch, pin
from flame_accel.data.loading.stream_state import (
    Identity,
    accumulation_for_rows,
    build_rank_state,
    check_stream_identity,
    read_lane_cursors,
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
        self._stream = stream
        self._layout = layout
        self._loader = loader
        self._identity = identity
        self._steps = 0
        self._cursors = [stream.beginning] * len(layout.lanes)
        self._kept: Iterator[Share | UserError] | None = None
        self._bad = BadRecordCounter(stream.policy.max_bad)
        self._num_slots = self._num_padding = 0
        for source in stream.sources:
            source.check_lanes(stream.num_lanes)
        if state is not None:
            check_stream_identity(state, identity)
            _check_rows_per_step(state["rows_per_step"], layout)
            self._cursors = read_lane_cursors(state, layout.lanes)
            self._steps = state["steps"]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yield the ``accumulation`` micro-batches of each step.

        Raises:
            UserError: what the sources raise, or too many bad records. The state stays that of the
                last step handed out.
        """
        layout = self._layout
        shares = self._kept
        if shares is None:
            shares = start_workers(self._stream, layout.lanes, self._cursors, self._loader)
            # readers report anew what lies behind the cursors
            self._bad.total = self.bad_documents
        if self._loader.persistent_workers:
            self._kept = shares
        size = layout.micro_batch_size
        num_shares = max(1, self._loader.workers_for(layout.lanes))
        pinned = self._loader.pin_memory and torch.cuda.is_available()
        try:
            while True:
                step = [_or_raise(next(shares)) for _ in range(num_shares)]
                cursors = [cursor for share in step for cursor in share.cursors]
                self._bad.add_records([record for share in step for record in share.skipped])
                rows = [row for share in step for row in share.rows]
                batches = [
                    build_micro_batch(rows[i : i + size], self._stream.packing)
                    for i in range(0, len(rows), size)
                ]
                self._cursors = cursors
                self._steps += 1
                self._num_slots += len(rows) * self._stream.packing.seq_len
                self._num_padding += sum(row.padding for row in rows)
                yield [pin(batch) for batch in batches] if pinned else batches
        except UserError:
            # its worker has ended
            self._kept = None
            raise
        finally:
            # the frame may live on in a traceback, and would keep the workers
            del shares

    def state_dict(self) -> dict[str, Any]:
        """State of this rank's lanes behind the last step handed out; see ``merge_states``."""
        return build_rank_state(
            self._identity,
            rows_per_step=self._stream.num_lanes,
            steps=self._steps,
            first_lane=self._layout.lanes.start,
            cursors=self._cursors,
        )

    @property
    def epoch(self) -> float:
        """Passes of this rank's lanes over the data so far; over the source that had the most."""
        lanes = [
            self._stream.readers(lane, cursor, lambda record: None)
            for lane, cursor in zip(self._layout.lanes, self._cursors, strict=True)
        ]
        return max(
            sum(reader.epoch for reader in readers) / len(lanes)
            for readers in zip(*lanes, strict=True)
        )

    @property
    def consumed_documents(self) -> int:
        """Documents that this rank's lanes have used up ..."""
        return sum(place.consumed for place in _places(self._cursors))

    @property
    def skipped_documents(self) -> int:
        """... and those that they have passed over; together all that they have read ..."""
        return sum(place.skipped for place in _places(self._cursors))

    @property
    def bad_documents(self) -> int:
        """... and how many of the latter count against ``training.max_bad_records``."""
        return sum(place.bad for place in _places(self._cursors))

    @property
    def tokens_per_source(self) -> list[int]:
        """Tokens of the documents that this rank's lanes have used up, for each source."""
        lanes = [cursor.sources for cursor in self._cursors]
        return [sum(place.tokens for place in places) for places in zip(*lanes, strict=True)]

    @property
    def packing_efficiency(self) -> float:
        """Share of the rows handed out by this process that is no padding; 1 before the first."""
        return 1 - self._num_padding / max(1, self._num_slots)

    @property
    def constant_targets(self) -> bool:
        """Whether every rank has the same number of targets in every step."""
        return self._stream.constant_targets


def _places(cursors: Sequence[LaneCursor]) -> Iterator[SourceCursor]:
    return (place for cursor in cursors for place in cursor.sources)


def _or_raise(item: Share | UserError) -> Share:
    if isinstance(item, UserError):
        raise item
    return item


def _check_rows_per_step(saved: int, layout: StepLayout) -> None:
    if saved == layout.rows_per_step:
        return
    accumulation = accumulation_for_rows(
        saved, micro_batch_size=layout.micro_batch_size, world_size=layout.world_size
    )
    raise UserError(
        f"a step has {layout.rows_per_step} rows (training.batch_size {layout.micro_batch_size} x "
        f"{layout.world_size} ranks x training.gradient_accumulation_steps {layout.accumulation}), "
        f"the checkpoint's have {saved}",
        where="training.gradient_accumulation_steps",
        remedy=f"use training.gradient_accumulation_steps {accumulation}",
    )
