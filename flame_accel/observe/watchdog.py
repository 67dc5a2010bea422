"""The watchdog: a run that makes no progress says where it hangs, and ends so that it is restarted.

A thread of every rank looks whether the main thread gets from one phase of a step to the next, and
whether the next rank still shows signs of life (`signs_of_life`). When one of them does not for too
long, every rank that lives writes the stacks of all its threads, the lowest of them says who is
missing, and all end with `EXIT_CODE`. A thread that keeps Python's lock while it hangs stops its
own watchdog too; other ranks notice that.
"""

import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from flame_accel.observe.run_end import write_ended_file
from flame_accel.observe.signs_of_life import RankProgress, SignsOfLife
from flame_accel.parallel.timeouts import EXTENDED_TIMEOUT_SECONDS
from flame_accel.stop_signals import print_unbuffered

EXIT_CODE = os.EX_TEMPFAIL
"""75, in the words of sysexits.h: a temporary failure, to be tried again."""
SHARE_OF_TIMEOUT = 0.75
"""A rank that waits in a collective is ended by its timeout, without a word on who is missing."""
LONG_PHASE_SECONDS = SHARE_OF_TIMEOUT * EXTENDED_TIMEOUT_SECONDS
SLOW_STEPS = 2
"""Steps of a start that compile and tune, and have the time of a long phase."""
TIMES_SLOWEST = 3
"""Phases may take so many times as long as the slowest one so far."""
CHECK_SECONDS = 5.0
LISTED_RANKS = 8
PHASES = ("data", "update", "record", "evaluation", "rewind", "write", "save", "export")
"""In the order of a step; `write` waits for the thread that writes a checkpoint."""


class _Position(NamedTuple):
    """Where the main thread is."""

    step: int
    phase: str
    is_long: bool
    number: int
    """Counts the phases that were entered."""
    records: int
    """Counts the records that are written."""


class Watchdog:
    """Ends the run of a rank that hangs, or whose fellow ranks do.

    Args:
        accelerator: The run's accelerator.
        run_folder: The run folder.
        watchdog_seconds: Longest time in one phase; 0 watches nothing.
        train_timeout_seconds: Timeout of collectives, which several ranks stay below.
        step: Number of completed updates.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run_folder: Path,
        *,
        watchdog_seconds: float,
        train_timeout_seconds: float,
        step: int,
    ) -> None:
        self.accelerator = accelerator
        self.run_folder = run_folder
        self.enabled = watchdog_seconds > 0
        self.limit_seconds = float(watchdog_seconds)
        if accelerator.num_processes > 1:
            self.limit_seconds = min(watchdog_seconds, SHARE_OF_TIMEOUT * train_timeout_seconds)
        self.check_seconds = min(CHECK_SECONDS, self.limit_seconds / 10)
        self.rank, self.num_ranks = accelerator.process_index, accelerator.num_processes
        self.signs = SignsOfLife(run_folder, self.rank)
        self._first_step = step
        self._position = _Position(step, PHASES[0], False, 0, 0)
        self._seen = self._position
        self._idle_seconds = self._slowest_seconds = self._neighbor_idle_seconds = 0.0
        self._since_record_seconds = self._longest_window_seconds = 0.0
        self._neighbor_touched_at: int | None = None
        self._ended, self._giving_up = threading.Event(), threading.Event()

    def enter(self, phase: str, step: int) -> None:
        """Says where the main thread is, which is progress.

        Args:
            phase: One of `PHASES`.
            step: Number of completed updates.
        """
        before = self._position
        records = before.records + (before.phase == "record")
        self._position = _Position(step, phase, False, before.number + 1, records)

    def feed(self) -> None:
        """Says that the main thread makes progress in the phase that it is in."""
        self._position = self._position._replace(number=self._position.number + 1)

    @contextmanager
    def long_phase(self, phase: str) -> Iterator[None]:
        """In the block the main thread has the time of a long phase; see `enter`."""
        before = self._position
        self._position = before._replace(phase=phase, is_long=True)
        self.feed()
        yield
        self._position = before._replace(number=self._position.number + 1)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches this rank in the block. Every rank must enter it."""
        if not self.enabled:
            yield
            return
        if self.num_ranks > 1:
            if self.accelerator.is_main_process:
                self.signs.clear()
            self.accelerator.wait_for_everyone()
            self.signs.show(self._position.step, self._position.phase)
        self.feed()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            # once it gives the run up it ends the process, whatever this thread has run into since
            thread.join(None if self._giving_up.is_set() else CHECK_SECONDS)
            self.signs.remove()

    def _watch(self) -> None:
        while not self._ended.wait(self.check_seconds):
            reason = self.check_progress()
            if reason is not None:
                self._giving_up.set()
                self._give_up(reason)

    def check_progress(self) -> str | None:
        """Looks at this rank and the next one; called every `check_seconds`.

        Time is what has passed in these calls: a process that is suspended for a while, with all
        others, has not been idle.

        Returns:
            Why the run is to be given up; None while it goes on.
        """
        position = self._position
        self._since_record_seconds += self.check_seconds
        if position.records != self._seen.records:
            longest = max(self._longest_window_seconds, self._since_record_seconds)
            self._longest_window_seconds, self._since_record_seconds = longest, 0.0
        if position.number == self._seen.number:
            self._idle_seconds += self.check_seconds
        else:
            if self._seen.phase != "record" and not self._is_long(self._seen):
                self._slowest_seconds = max(self._slowest_seconds, self._idle_seconds)
            self._seen, self._idle_seconds = position, 0.0
        limit = self._limit_of(position)
        if self._idle_seconds >= limit:
            return f"no progress for {limit:.0f} s (training.watchdog_seconds)"
        if self.num_ranks == 1:
            return None
        self.signs.show(position.step, position.phase)
        if self.signs.is_given_up():
            return "another rank has given the run up"
        neighbor = (self.rank + 1) % self.num_ranks
        touched_at = self.signs.touched_at(neighbor)
        if touched_at is not None and touched_at == self._neighbor_touched_at:
            self._neighbor_idle_seconds += self.check_seconds
        else:
            self._neighbor_touched_at, self._neighbor_idle_seconds = touched_at, 0.0
        if self._neighbor_idle_seconds >= self.limit_seconds:
            return f"no sign of life of rank {neighbor} for {self.limit_seconds:.0f} s"
        return None

    def _is_long(self, position: _Position) -> bool:
        first_window = position.phase == "record" and position.records < 2
        return position.is_long or first_window or position.step < self._first_step + SLOW_STEPS

    def _limit_of(self, position: _Position) -> float:
        """How long the main thread may be in a phase, in seconds."""
        if self._is_long(position):
            return max(LONG_PHASE_SECONDS, self.limit_seconds)
        if position.phase == "record":
            # the host may be all steps since the last record ahead of the device
            return max(self.limit_seconds, TIMES_SLOWEST * self._longest_window_seconds)
        return max(self.limit_seconds, TIMES_SLOWEST * self._slowest_seconds)

    def _give_up(self, reason: str) -> None:
        """Writes what is known and ends the process."""
        stacks = self._write_stacks()
        position = self._position
        states: list[RankProgress | None] = [None] * self.num_ranks
        if self.num_ranks > 1:
            self.signs.give_up()
            states = self._wait_for_others()
        states[self.rank] = self.signs.show(position.step, position.phase, has_given_up=True)
        reporter = next(rank for rank, state in enumerate(states) if state and state.has_given_up)
        lines = [stacks]
        if reporter == self.rank:
            what = f"{reason}: {describe_missing_ranks(states)}"
            with suppress(OSError):
                write_ended_file(self.run_folder, "watchdog", position.step, what)
            now = datetime.now().isoformat(" ", timespec="seconds")
            message = f"watchdog: {what}; the run ends with exit code {EXIT_CODE}, to be restarted"
            with (
                suppress(OSError),
                (self.run_folder / "log.txt").open("a", encoding="utf-8") as log,
            ):
                log.write(f"{now} {message}\n")
            lines.append(message)
        # a console that nobody reads must not keep the process
        printing = threading.Thread(target=print_unbuffered, args=["\n".join(lines)], daemon=True)
        printing.start()
        printing.join(self.check_seconds)
        for worker in multiprocessing.active_children():
            # one that is stopped does not notice that its parent has gone
            worker.kill()
        os._exit(EXIT_CODE)

    def _write_stacks(self) -> str:
        """Appends the stacks of all threads to a file of this rank, and returns them."""
        path = self.signs.folder / f"stacks-{self.rank}.txt"
        title = f"rank {self.rank}: stacks of all threads, {datetime.now():%Y-%m-%d %H:%M:%S}\n"
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with path.open("a+", encoding="utf-8", errors="replace") as file:
                start = file.tell()
                file.write(title)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.seek(start)
                return file.read()
        return title

    def _wait_for_others(self) -> list[RankProgress | None]:
        """What all ranks say once they have given up too; waits for those that live."""
        position = self._position
        self.signs.show(position.step, position.phase, has_given_up=True)
        deadline = time.monotonic() + 3 * self.check_seconds
        while True:
            states = [self.signs.read(rank) for rank in range(self.num_ranks)]
            late = any(state is not None and not state.has_given_up for state in states)
            if not late or time.monotonic() >= deadline:
                return states
            time.sleep(self.check_seconds / 10)


def describe_missing_ranks(states: list[RankProgress | None]) -> str:
    """Who is missing, in words: ranks that are gone or deaf, else those that are behind.

    Args:
        states: What each rank said last, by rank; None if it has ended.
    """
    silent = [state for state in states if state is not None and not state.has_given_up]
    living = [state for state in states if state is not None and state.has_given_up]
    parts = [f"rank {rank} has ended" for rank, state in enumerate(states) if state is None]
    parts += [f"{_describe(state)} shows no sign of life" for state in silent]
    furthest = max(map(_order, living))
    behind = [state for state in living if _order(state) < furthest or state.workers]
    parts += [f"{_describe(state)} is behind the others" for state in behind if len(living) > 1]
    if not parts:
        parts = [f"every rank is at the same place ({_describe(living[0])})"]
    if len(states) == 1:
        parts = [_describe(living[0])]
    more = len(parts) - LISTED_RANKS
    return "; ".join(parts[:LISTED_RANKS]) + (f"; and {more} more" if more > 0 else "")


def _order(state: RankProgress) -> tuple[int, int]:
    return state.step, PHASES.index(state.phase)


def _describe(state: RankProgress) -> str:
    workers = f", its {state.workers}" if state.workers else ""
    return (
        f"rank {state.rank} (process {state.pid} on {state.host}, after step {state.step}, "
        f"in phase {state.phase}{workers})"
    )
