"""Worker processes that pack rows, each for a contiguous part of a rank's lanes.

Rows and cursors travel as numpy arrays and integers through torch's `DataLoader`, which starts the
processes, reads ahead and ends them. Steps and their states are made in `step_batches`.
"""

import ctypes
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from multiprocessing.util import Finalize
from typing import NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import too_many_bad_records_error
from flame_accel.data.cursors import LaneCursor
from flame_accel.data.documents import Skipped
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.lanes.rows import Row
from flame_accel.data.worker_processes import start_exit_with_parent_thread

T = TypeVar("T")
WORKER_LOST_MESSAGE = re.compile(r"DataLoader worker \(pid.* (is killed by signal|exited unexp)")
"""As torch says that a process is gone; it may say so amid any line of the main thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderOptions:
    """Processes and memory of the loader; none of this changes what it yields."""

    num_workers: int = 0
    """Worker processes, at most one per lane of the rank; 0: pack rows in this process."""
    prefetch_factor: int = 2
    """Number of steps that each worker reads ahead."""
    pin_memory: bool = False
    """Yield tensors in page-locked memory if there is a CUDA device."""
    persistent_workers: bool = False
    """Keep the workers, and what they have read ahead, when an iteration ends early."""

    def num_workers_for(self, lanes: range) -> int:
        """Number of worker processes for these lanes."""
        return min(self.num_workers, len(lanes))


class WorkerStep(NamedTuple):
    """What the lanes of one worker give to a step."""

    rows: list[Row]
    """One row per lane."""
    cursors: list[LaneCursor]
    """The cursor of each lane behind its row."""
    skipped: list[Skipped]
    """The bad records that these lanes skipped since the last step."""


class _LaneRows(IterableDataset):
    """The steps of some lanes; in a worker process, of the lanes of this worker."""

    def __init__(self, lanes: Lanes, lane_numbers: range, cursors: Sequence[LaneCursor]) -> None:
        self._lanes = lanes
        self._lane_numbers = lane_numbers
        self._cursors = cursors

    def __iter__(self) -> Iterator[WorkerStep | UserError]:
        """Yield the rows of each step, without end; errors for users are yielded, not raised."""
        skipped: list[Skipped] = []
        limit = self._lanes.policy.max_bad

        def collect_skipped_and_check_limit(record: Skipped) -> None:
            skipped.append(record)
            # reading the rest of a damaged file would be useless
            if limit is not None and len(skipped) > limit:
                raise too_many_bad_records_error(len(skipped), limit, record)

        try:
            lanes = [
                self._lanes.open_lane(
                    self._lane_numbers[i], self._cursors[i], collect_skipped_and_check_limit
                )
                for i in _lane_indices_of_this_worker(len(self._lane_numbers))
            ]
            for _ in zip_longest(*(lane.read_ahead_in_steps() for lane in lanes)):
                pass
            while True:
                rows = [lane.next_row() for lane in lanes]
                yield WorkerStep(rows, [lane.cursor for lane in lanes], skipped.copy())
                skipped.clear()
        except UserError as error:
            # raised here, it would reach the user inside a worker's traceback
            yield error


def start_packing_workers(
    lanes: Lanes, lane_numbers: range, cursors: Sequence[LaneCursor], options: LoaderOptions
) -> Iterator[WorkerStep | UserError]:
    """Start packing rows, in worker processes or in this one.

    Args:
        lanes: the lanes of the run.
        lane_numbers: those of this rank.
        cursors: where each of these starts.
        options: processes and memory.

    Returns:
        What the workers give, in turn and in the order of the lanes: one of each makes a step.
    """
    workers = options.num_workers_for(lane_numbers)
    exits_on_sigterm = multiprocessing.RawValue("b", 0)
    loader = DataLoader(
        _LaneRows(lanes, lane_numbers, cursors),
        batch_size=None,
        collate_fn=_return_unchanged,
        num_workers=workers,
        prefetch_factor=options.prefetch_factor if workers else None,
        worker_init_fn=partial(_ignore_signals_exit_with_parent, exits_on_sigterm),
        # torch draws a seed for its workers: keep it off the generator that the model uses
        generator=torch.Generator(),
    )
    try:
        with _disable_tokenizer_threads():
            steps = iter(loader)
    except BaseException:
        # those that had started are terminated at exit
        exits_on_sigterm.value = 1
        raise
    # once nothing uses the workers any more, or before multiprocessing terminates them at exit
    Finalize(steps, setattr, (exits_on_sigterm, "value", 1), exitpriority=0)
    return steps


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Explains that a worker process has ended, which no line of the program is to blame for.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not WORKER_LOST_MESSAGE.search(str(error)):
            raise
        raise UserError(
            f"a worker process of the data was lost, most likely because memory ran out: {error}",
            where="training.num_workers",
            remedy="lower it, or give the run more memory; the same command continues from the "
            "newest checkpoint",
        ) from error


def _lane_indices_of_this_worker(num_lanes: int) -> range:
    """Indices of the lanes of this process: contiguous parts, in the order of the workers."""
    worker = get_worker_info()
    if worker is None:
        return range(num_lanes)
    start, stop = (num_lanes * i // worker.num_workers for i in (worker.id, worker.id + 1))
    return range(start, stop)


def _return_unchanged(item: T) -> T:
    return item


def _ignore_signals_exit_with_parent(exits_on_sigterm: ctypes.c_byte, worker_id: int) -> None:
    """Ignore the signals that a terminal or a scheduler sends, and end with the run's process.

    A signal reaches every process of a run, which handles it at the end of a step and needs its
    workers until then. SIGTERM ends a worker only once `exits_on_sigterm` is set: the loader is
    gone, or the run's process is exiting.
    """

    def exit_if_allowed(signal_number: int, frame: object) -> None:
        if exits_on_sigterm.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, exit_if_allowed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    start_exit_with_parent_thread()


@contextmanager
def _disable_tokenizer_threads() -> Iterator[None]:
    """Make processes that start in this context tokenize without threads of their own.

    The user chose the number of workers, and a thread pool does not survive a fork.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
