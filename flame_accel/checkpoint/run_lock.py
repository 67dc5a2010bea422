"""`run.lock`: one process owns a run folder, and a second run in it is refused at once.

The kernel holds the lock (flock), so that it is free the moment its owner is gone, however that
ended. Where a file system has no such locks, or keeps them on each machine for itself, a sign of
life does: the owner touches the file every few seconds, and who wants it looks whether it is
touched again. No clocks are compared. The main process holds the lock for all ranks.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from flame_accel.config import UserError
from flame_accel.io_errors import describe_if_io_error
from flame_accel.json_text import parse_json_text
from flame_accel.observe import get_logger
from flame_accel.parallel import run_on_main_and_broadcast
from flame_accel.stop_signals import print_unbuffered

LOCK_FILE = "run.lock"
SIGN_OF_LIFE_SECONDS = 5.0
"""Interval at which an owner touches its lock."""
LEASE_SECONDS = 3 * SIGN_OF_LIFE_SECONDS
"""An owner that shows no sign of life for so long is gone."""
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockOwner(NamedTuple):
    """Who holds a run folder, as it stands in the lock file."""

    host: str
    pid: int
    since: str
    token: str
    """Differs between any two owners."""

    @classmethod
    def from_file_content(cls, content: bytes) -> "LockOwner | None":
        """None if the content is empty or damaged: nobody is known."""
        try:
            entries = parse_json_text(content)
            return cls(**{name: entries[name] for name in cls._fields})
        except (ValueError, KeyError, TypeError):
            return None


class RunLock:
    """The lock of a run folder, of this process.

    Args:
        run_folder: Created if it does not exist.

    Attributes:
        keeps_changes: Whether the run has begun. Before it has, `release` leaves the folder as it
            was, down to the lock of an owner that is gone.
    """

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self.path = run_folder / LOCK_FILE
        time_now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.owner = LockOwner(socket.gethostname(), os.getpid(), time_now, secrets.token_hex(8))
        self.keeps_changes = False
        self._descriptor: int | None = None
        self._content_before: bytes | None = None
        self._created_folders: list[Path] = []
        self._released = threading.Event()

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            UserError: Another run holds it, or the folder cannot be written to.
        """
        folders = (self.run_folder, *self.run_folder.parents)
        self._created_folders = [folder for folder in folders if not folder.exists()]
        try:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise UserError(
                f"the run folder cannot be written to: {error.strerror}",
                where=f"job.dump_folder = {self.run_folder}",
                remedy="choose a folder that you can write to",
            ) from error
        # a worker process would keep the kernel's lock for its parent
        os.register_at_fork(after_in_child=self._close_descriptor)
        threading.Thread(target=self._show_signs_of_life, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Gives the folder back; without the lock file, or as `acquire` found it (see there)."""
        self._released.set()
        if self._descriptor is None:
            return
        try:
            self._restore_or_remove(self._descriptor)
        except OSError as error:
            # the kernel frees it all the same, and this hides no other error
            get_logger().warning("%s: %s", LOCK_FILE, describe_if_io_error(error))
        finally:
            self._close_descriptor()

    def _restore_or_remove(self, descriptor: int) -> None:
        if self.keeps_changes:
            self.path.unlink(missing_ok=True)
            return
        if self._content_before is not None:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, self._content_before, 0)
        else:
            self.path.unlink(missing_ok=True)
        for folder in self._created_folders:
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _acquire(self) -> None:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                kernel_keeps_locks = self._take_kernel_lock_or_raise(descriptor)
                if _is_file_at_path(descriptor, self.path):
                    self._content_before = self._replace_owner(descriptor, kernel_keeps_locks)
                    self._descriptor = descriptor
                    return
            except BaseException:
                os.close(descriptor)
                raise
            # its owner removed the file after we had opened it
            os.close(descriptor)

    def _take_kernel_lock_or_raise(self, descriptor: int) -> bool:
        """Takes the kernel's lock; returns False where the file system has none.

        Raises:
            UserError: Another process holds it.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = LockOwner.from_file_content(_read_all(descriptor))
            raise self._in_use_error(owner) from error
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        return True

    def _replace_owner(self, descriptor: int, kernel_keeps_locks: bool) -> bytes | None:
        """Writes this owner into the lock; returns what stood there, None if nothing did.

        Raises:
            UserError: The owner that stood there lives, or another one was quicker.
        """
        content = _read_all(descriptor)
        before = LockOwner.from_file_content(content)
        # the kernel's answer holds for this machine; of others it may know nothing
        if before and not (kernel_keeps_locks and before.host == self.owner.host):
            self._wait_and_raise_if_alive(before)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(self.owner._asdict()) + "\n").encode(), 0)
        os.fsync(descriptor)
        if not kernel_keeps_locks:
            # of several that start at once the last one to write has it
            time.sleep(SIGN_OF_LIFE_SECONDS / 5)
            winner = LockOwner.from_file_content(self.path.read_bytes())
            if winner != self.owner:
                raise self._in_use_error(winner)
        return content or None

    def _wait_and_raise_if_alive(self, owner: LockOwner) -> None:
        """Raises `UserError` if the owner touches the lock within the time of a lease."""
        get_logger().info("waiting %.0f s for a sign of life of %s", LEASE_SECONDS, owner.host)
        seen, deadline = _modification_time(self.path), time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(SIGN_OF_LIFE_SECONDS / 5)
            if _modification_time(self.path) != seen:
                raise self._in_use_error(owner)

    def _show_signs_of_life(self) -> None:
        """Touches the lock until it is released; ends the process if another one has taken it."""
        while not self._released.wait(SIGN_OF_LIFE_SECONDS):
            try:
                owner = LockOwner.from_file_content(self.path.read_bytes())
                if owner is None or owner.token == self.owner.token:
                    # only now: it would be a sign of life of whoever has taken it
                    os.utime(self.path)
                    continue
            except OSError:
                # removed by hand, or a file system that is away for a while
                continue
            print_unbuffered(f"{self._in_use_error(owner)}\n    this run ends without a save")
            os._exit(1)

    def _in_use_error(self, owner: LockOwner | None) -> UserError:
        who = f"process {owner.pid} on {owner.host}, since {owner.since}" if owner else "a process"
        return UserError(
            f"another run is going on in this folder: {who}",
            where=f"job.dump_folder = {self.run_folder}",
            remedy="wait for it or stop it, or choose another job.dump_folder",
        )


@contextmanager
def own_run_folder(accelerator: Accelerator, run_folder: Path) -> Iterator[RunLock]:
    """Holds the lock of a run folder in the block, on the main process. Every rank must call it.

    Set `keeps_changes` once the start can no longer be refused: until then an end of the block
    leaves the folder as it was.

    Raises:
        UserError: On every rank: another run holds the folder, or it cannot be written to.
    """
    lock = RunLock(run_folder)
    run_on_main_and_broadcast(accelerator, lock.acquire)
    try:
        yield lock
    finally:
        lock.release()


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 16, 0)


def _is_file_at_path(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _modification_time(path: Path) -> int:
    """In nanoseconds; opened for it, since network file systems look at the server then."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns
