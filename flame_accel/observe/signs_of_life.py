"""`watchdog/rank-N.json`: what each rank does, for the others to read while collectives hang.

A rank overwrites its file in place and touches it every few seconds. Whether it was touched is all
that is compared, no clocks. Files need no process that could hang too, and the run folder is
shared by all machines. When a run is given up is decided in `watchdog`.
"""

import json
import multiprocessing
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flame_accel.json_text import parse_json_text

FOLDER = "watchdog"
RECORD_BYTES = 512
"""Every record is padded to it, so that overwriting one needs no space on a full disk."""


class RankProgress(NamedTuple):
    """What a rank says of itself."""

    rank: int
    host: str
    pid: int
    step: int
    """Number of completed updates."""
    phase: str
    workers: str
    """Data workers that are stopped, in words; empty if there are none."""
    has_given_up: bool
    """Whether its watchdog has ended the run, and its stacks are written."""


class SignsOfLife:
    """The files of a run's ranks, of which this rank writes its own.

    Args:
        run_folder: The run folder.
        rank: This rank.
    """

    def __init__(self, run_folder: Path, rank: int) -> None:
        self.folder = run_folder / FOLDER
        self.rank = rank
        self.path = self._path_of(rank)
        self._given_up = self.folder / "given-up"
        self._last = b""

    def _path_of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def clear(self) -> None:
        """Creates the folder without what an earlier start left, but for stacks. Main process."""
        self.folder.mkdir(exist_ok=True)
        for leftover in (*self.folder.glob("rank-*.json"), self._given_up):
            leftover.unlink(missing_ok=True)

    def show(self, step: int, phase: str, *, has_given_up: bool = False) -> RankProgress:
        """Writes what this rank does, and touches its file. A full disk is no sign of death."""
        progress = RankProgress(
            *(self.rank, socket.gethostname(), os.getpid(), step, phase),
            *(describe_stopped_data_workers(), has_given_up),
        )
        content = json.dumps(progress).encode().ljust(RECORD_BYTES)
        with suppress(OSError):
            if content != self._last:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
                try:
                    os.pwrite(descriptor, content, 0)
                finally:
                    os.close(descriptor)
                self._last = content
            os.utime(self.path)
        return progress

    def touched_at(self, rank: int) -> int | None:
        """When a rank last touched its file, in nanoseconds of whoever keeps it; None if never."""
        with suppress(OSError), self._path_of(rank).open("rb") as file:
            # network file systems look at the server when a file is opened
            return os.fstat(file.fileno()).st_mtime_ns
        return None

    def read(self, rank: int) -> RankProgress | None:
        """What a rank said last; None if it has ended, or its file is being written."""
        try:
            return RankProgress(*parse_json_text(self._path_of(rank).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def give_up(self) -> None:
        """Tells all ranks that the run is given up."""
        with suppress(OSError):
            self._given_up.touch()

    def is_given_up(self) -> bool:
        """Whether a rank has given the run up."""
        return self._given_up.exists()

    def remove(self) -> None:
        """Removes this rank's file, and the folder once it is empty: it has ended well."""
        with suppress(OSError):
            self.path.unlink()
            self.folder.rmdir()


def describe_stopped_data_workers() -> str:
    """The child processes of `multiprocessing` that do not run, in words; empty without any."""
    # of accelerate's requirements
    import psutil

    stopped = []
    for worker in multiprocessing.active_children():
        with suppress(psutil.Error):
            status = psutil.Process(worker.pid).status()
            if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE):
                stopped.append(f"{worker.pid} ({status})")
    return f"data workers {', '.join(stopped[:4])} do not run" if stopped else ""
