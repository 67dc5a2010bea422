"""The processes that pack rows: each works on a contiguous share of a rank's lanes.

Rows and cursors travel as numpy arrays and integers through torch's `DataLoader`, which supplies
processes, read-ahead and their end. What a step is, and where a stream stands, is `batches`' part.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy, too_many_bad_records
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Skipped
from flame_accel.data.lanes.row_packing import Lane
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.stages import DocumentReader, ShuffledSource

ORPHAN_SECONDS = 1.0
"""How often a worker looks whether the run's process is still there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderOptions:
    """How the loader works; none of it changes what it yields."""

    num_workers: int = 0
    """Worker processes, at most one per lane of the rank; 0 loads in this process."""
    prefetch_factor: int = 2
    """Steps that each worker reads ahead."""
    pin_memory: bool = False
    """Hand out page-locked tensors where there is a CUDA device."""
    persistent_workers: bool = False
    """Keep the workers, and what they have read ahead, when an iteration is left."""

    def workers_for(self, lanes: range) -> int:
        """Worker processes for so many lanes."""
        return min(self.num_workers, len(lanes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """What all lanes have in common."""

    sources: Sequence[ShuffledSource]
    """What documents come from, at least one."""
    shares: Sequence[float]
    """Share of each source in the tokens."""
    packing: Packing
    """How documents fill rows."""
    num_lanes: int
    """Rows per step."""
    policy: SkipPolicy
    """What happens to records that give no document."""
    constant_targets: bool = False
    """Whether all rows have the same number of targets."""

    @property
    def beginning(self) -> LaneCursor:
        """Where each lane starts."""
        return LaneCursor(sources=(SourceCursor(),) * len(self.sources))

    def readers(
        self, lane: int, cursor: LaneCursor, report: Callable[[Skipped], None]
    ) -> list[DocumentReader]:
        """The ways of a lane through the sources, from a cursor on."""
        return [
            source.open_reader(lane, self.num_lanes, place, self.policy, report)
            for source, place in zip(self.sources, cursor.sources, strict=True)
        ]

    def open(self, lane: int, cursor: LaneCursor, report: Callable[[Skipped], None]) -> Lane:
        """A lane, from a cursor on; ``report`` is told of every bad record passed over."""
        return Lane(self.readers(lane, cursor, report), self.shares, self.packing, cursor)


class Share(NamedTuple):
    """What one worker's lanes give to a step."""

    rows: list[Row]
    """Their rows ..."""
    cursors: list[LaneCursor]
    """... where these lanes stand after them ..."""
    skipped: list[Skipped]
    """... and the bad records that were passed over since the last step."""


class _LaneRows(IterableDataset):
    """The steps of some lanes; in a worker process, of this worker's share of them."""

    def __init__(self, stream: Stream, lanes: range, cursors: Sequence[LaneCursor]) -> None:
        self._stream = stream
        self._lanes = lanes
        self._cursors = cursors

    def __iter__(self) -> Iterator[Share | UserError]:
        """Yield a share per step, for ever; a problem for the user is yielded, then the end."""
        skipped: list[Skipped] = []
        limit = self._stream.policy.max_bad

        def report(record: Skipped) -> None:
            skipped.append(record)
            # of no use to read on through a damaged file
            if limit is not None and len(skipped) > limit:
                raise too_many_bad_records(len(skipped), limit, record)

        try:
            lanes = [
                self._stream.open(self._lanes[i], self._cursors[i], report)
                for i in _worker_share(len(self._lanes))
            ]
            while sum(lane.prepare() for lane in lanes):
                pass
            while True:
                rows = [lane.next_row() for lane in lanes]
                yield Share(rows, [lane.cursor for lane in lanes], skipped.copy())
                skipped.clear()
        except UserError as error:
            # raised here it would reach the user inside torch's report of a worker's traceback
            yield error


def start_workers(
    stream: Stream, lanes: range, cursors: Sequence[LaneCursor], options: LoaderOptions
) -> Iterator[Share | UserError]:
    """Pack rows of ``lanes`` from ``cursors`` on.

    Returns:
        Shares of the workers in turn, in the order of the lanes: one from each makes a step.
    """
    workers = options.workers_for(lanes)
    ending = multiprocessing.RawValue("b", 0)
    loader = DataLoader(
        _LaneRows(stream, lanes, cursors),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=options.prefetch_factor if workers else None,
        worker_init_fn=partial(_live_and_die_with_the_run, ending),
        # torch draws a seed for its workers: not from the generator that the model uses
        generator=torch.Generator(),
    )
    with _serial_tokenizers(workers > 0):
        shares = iter(loader)
    # when nobody needs the workers any more, or before multiprocessing terminates them at exit
    Finalize(shares, setattr, (ending, "value", 1), exitpriority=0)
    return shares


def _worker_share(num_lanes: int) -> range:
    """Which of the lanes this process works on: contiguous shares, in the order of the workers."""
    worker = get_worker_info()
    if worker is None:
        return range(num_lanes)
    start, stop = (num_lanes * i // worker.num_workers for i in (worker.id, worker.id + 1))
    return range(start, stop)


def _as_is(item: Any) -> Any:
    return item


def _live_and_die_with_the_run(ending: Any, worker: int) -> None:
    """Survive the signals that a terminal or a scheduler sends, but not the run's process.

    A signal goes to every process of a run, which answers it at the end of a step and needs its
    workers until then. SIGTERM is obeyed only once ``ending`` says that the loader is gone or the
    run's process on its way out.
    """

    def terminate(number: int, frame: object) -> None:
        if ending.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_exit_without_the_run, name="orphan watch", daemon=True).start()


def _exit_without_the_run() -> None:
    """End this process when the one that started it is gone, killed ones included.

    torch's own watch lets the worker return, which then waits for ever to get rid of the rows that
    it has read ahead: nobody empties the pipe.
    """
    run = multiprocessing.parent_process()
    assert run is not None
    parent = os.getppid()
    # the sentinel tells at once, unless a process that was forked later still holds its other end
    while run.is_alive() and os.getppid() == parent:
        run.join(ORPHAN_SECONDS)
    os._exit(1)


@contextmanager
def _serial_tokenizers(active: bool) -> Iterator[None]:
    """Let processes that start inside tokenise without threads of their own.

    There are as many workers as asked for, and a thread pool does not survive a fork.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if active:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif active:
            del os.environ[name]
