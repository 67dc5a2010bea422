"""The processes that pack rows: each works on a contiguous share of a rank's lanes.

Rows and cursors travel as numpy arrays and integers through torch's `DataLoader`, which supplies
processes, read-ahead and their end. What a step is, and where a stream stands, is `batches`' part.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flame_accel.config.errors import UserError
from flame_accel.data.lanes.lane import Cursor, Encode, Lane, Order, Packing, Row


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

    encode: Encode
    """Gives the tokens of a document."""
    order: Order
    """The order of the documents."""
    packing: Packing
    """How documents fill rows."""
    num_lanes: int
    """Rows per step."""

    def open(self, lane: int, cursor: Cursor) -> Lane:
        """A lane, from a cursor on."""
        return Lane(
            self.encode,
            self.order,
            self.packing,
            lane=lane,
            num_lanes=self.num_lanes,
            cursor=cursor,
        )


class Share(NamedTuple):
    """The rows of one worker's lanes for one step, and where these lanes stand after them."""

    rows: list[Row]
    cursors: list[Cursor]


class _LaneRows(IterableDataset):
    """The steps of some lanes; in a worker process, of this worker's share of them."""

    def __init__(self, stream: Stream, lanes: range, cursors: Sequence[Cursor]) -> None:
        self._stream = stream
        self._lanes = lanes
        self._cursors = cursors

    def __iter__(self) -> Iterator[Share | UserError]:
        """Yield a share per step, for ever; a problem for the user is yielded, then the end."""
        lanes = [
            self._stream.open(self._lanes[i], self._cursors[i])
            for i in _worker_share(len(self._lanes))
        ]
        try:
            while True:
                rows = [lane.next_row() for lane in lanes]
                yield Share(rows, [lane.cursor for lane in lanes])
        except UserError as error:
            # raised here it would reach the user inside torch's report of a worker's traceback
            yield error


def start_workers(
    stream: Stream, lanes: range, cursors: Sequence[Cursor], options: LoaderOptions
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
        worker_init_fn=partial(_leave_signals_to_the_run, ending),
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


def _leave_signals_to_the_run(ending: Any, worker: int) -> None:
    """Survive the signals that a terminal or a scheduler sends to every process of a run.

    The run answers them at the end of a step, and needs its workers until then. SIGTERM is obeyed
    only once ``ending`` says that the loader is gone or the run's process on its way out.
    """

    def terminate(number: int, frame: object) -> None:
        if ending.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


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
