"""The loader: the micro-batches of each optimizer step for one data-parallel rank.

Row `l` of a step comes from lane `l`, whatever the number of ranks, workers and micro-batches: a
rank has a contiguous part of the lanes, each of its worker processes a part of those, and
micro-batch `m` takes the `m`-th `micro_batch_size` of the rank's rows. Workers send their cursors
with the rows, so that the state is that of the last step yielded, however far they have read
ahead. The caller moves batches to a device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import BadRecordCounter
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.loading.micro_batch import (
    MicroBatch,
    pin_memory,
    stack_rows_with_unshifted_masked_labels,
)
from flame_accel.data.loading.resume_checks import (
    check_format_and_stream_identity,
    check_rows_per_step,
)
from flame_accel.data.loading.stream_state import (
    Identity,
    StreamState,
    build_rank_state,
    read_lane_cursors,
)
from flame_accel.data.loading.workers import LoaderOptions, WorkerStep, start_packing_workers


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLayout:
    """How the rows of a step are split over ranks and micro-batches."""

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
        """Rows of a step on all ranks: the number of lanes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @property
    def lanes_of_rank(self) -> range:
        """The lanes of this rank."""
        count = self.micro_batch_size * self.accumulation
        return range(self.rank * count, (self.rank + 1) * count)


class ConsumedSkippedBadCounts(NamedTuple):
    """What became of the records that were read, since the run began."""

    consumed: int
    """Number of documents that were used."""
    skipped: int
    """Number of records that were read and skipped."""
    bad: int
    """Number of the skipped records that count against `training.max_bad_records`."""


class StepBatches:
    """The micro-batches of the optimizer steps of one rank, without end.

    Each iteration resumes behind the last step yielded; only one may be active at a time.

    Args:
        lanes: the lanes of the run, as many as `layout` has rows per step.
        layout: how the rows of a step are split over ranks and micro-batches.
        loader: processes and memory.
        identity: what a state must agree with to be resumed here.
        state: merged state to resume from; None: from the start.

    Raises:
        UserError: fewer documents than lanes, or a state that cannot be resumed.
    """

    def __init__(
        self,
        lanes: Lanes,
        layout: StepLayout,
        loader: LoaderOptions,
        *,
        identity: Identity,
        state: StreamState | None = None,
    ) -> None:
        assert lanes.num_lanes == layout.rows_per_step
        self._lanes = lanes
        self._layout = layout
        self._loader = loader
        self._identity = identity
        self._steps = 0
        self._cursors = [lanes.start_cursor] * len(layout.lanes_of_rank)
        self._kept_workers: Iterator[WorkerStep | UserError] | None = None
        self._bad = BadRecordCounter(lanes.policy.max_bad)
        self._num_slots = self._num_padding = 0
        lanes.check_enough_records_if_known()
        if state is not None:
            check_format_and_stream_identity(state, identity)
            check_rows_per_step(
                state,
                micro_batch_size=layout.micro_batch_size,
                accumulation=layout.accumulation,
                world_size=layout.world_size,
            )
            self._cursors = read_lane_cursors(state, layout.lanes_of_rank)
            self._steps = state["steps"]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yield the `accumulation` micro-batches of each step.

        Raises:
            UserError: an error of the sources, or too many bad records. The state stays that of the
                last step yielded.
        """
        layout = self._layout
        workers = self._kept_workers
        if workers is None:
            workers = start_packing_workers(
                self._lanes, layout.lanes_of_rank, self._cursors, self._loader
            )
            # readers report again what is behind the cursors
            self._bad.total = self.counts_of_rank.bad
        if self._loader.persistent_workers:
            self._kept_workers = workers
        size = layout.micro_batch_size
        num_workers = max(1, self._loader.num_workers_for(layout.lanes_of_rank))
        pinned = self._loader.pin_memory and torch.cuda.is_available()
        try:
            while True:
                step = [_raise_if_error(next(workers)) for _ in range(num_workers)]
                cursors = [cursor for part in step for cursor in part.cursors]
                self._bad.count_and_log_first_or_raise_over_limit(
                    [record for part in step for record in part.skipped]
                )
                rows = [row for part in step for row in part.rows]
                batches = [
                    stack_rows_with_unshifted_masked_labels(rows[i : i + size], self._lanes.packing)
                    for i in range(0, len(rows), size)
                ]
                self._cursors = cursors
                self._steps += 1
                self._num_slots += len(rows) * self._lanes.packing.seq_len
                self._num_padding += sum(row.padding for row in rows)
                yield [pin_memory(batch) for batch in batches] if pinned else batches
        except UserError:
            # the worker has ended
            self._kept_workers = None
            raise
        finally:
            # a traceback may keep this frame, which would keep the workers
            del workers

    def state_dict(self) -> StreamState:
        """State of this rank's lanes behind the last step yielded; see `merge_rank_states`."""
        return build_rank_state(
            self._identity,
            rows_per_step=self._lanes.num_lanes,
            steps=self._steps,
            first_lane=self._layout.lanes_of_rank.start,
            cursors=self._cursors,
        )

    @property
    def max_source_epoch_of_rank(self) -> float:
        """Passes of this rank's lanes over the documents, of a stream over its files, so far.

        The most over any source.
        """
        opened = [
            self._lanes.open_readers(lane, cursor, lambda record: None)
            for lane, cursor in zip(self._layout.lanes_of_rank, self._cursors, strict=True)
        ]
        return max(
            sum(reader.approximate_epochs_read for reader in readers) / len(opened)
            for readers in zip(*opened, strict=True)
        )

    @property
    def counts_of_rank(self) -> ConsumedSkippedBadCounts:
        """What became of the records that this rank's lanes have read so far."""
        sources = [source for cursor in self._cursors for source in cursor.sources]
        return ConsumedSkippedBadCounts(
            consumed=sum(source.consumed for source in sources),
            skipped=sum(source.skipped for source in sources),
            bad=sum(source.bad for source in sources),
        )

    @property
    def source_tokens_of_rank(self) -> list[int]:
        """Number of tokens that this rank's lanes have read from each source so far."""
        columns = zip(*(cursor.sources for cursor in self._cursors), strict=True)
        return [sum(source.tokens for source in sources) for sources in columns]

    @property
    def packing_efficiency_of_rank(self) -> float:
        """Share of the tokens yielded by this process that is not padding; 1 before the first."""
        return 1 - self._num_padding / max(1, self._num_slots)

    @property
    def constant_targets(self) -> bool:
        """Whether every rank has the same number of targets in every step."""
        return self._lanes.constant_targets


def _raise_if_error(item: WorkerStep | UserError) -> WorkerStep:
    """The step of a worker; raises the error that it sent instead."""
    if isinstance(item, UserError):
        raise item
    return item
