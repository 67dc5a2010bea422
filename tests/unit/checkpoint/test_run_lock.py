"""A run folder has one owner at a time, and is free the moment the owner is gone."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from flame_accel.checkpoint import run_lock
from flame_accel.checkpoint.run_lock import RunLock
from flame_accel.config import UserError


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every 50 ms."""
    monkeypatch.setattr(run_lock, "SIGN_OF_LIFE_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 0.3)


@pytest.fixture
def without_kernel_locks(monkeypatch: pytest.MonkeyPatch, hasty: None) -> None:
    """A file system that has no locks."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_owner_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    said, ends = os.pipe(), os.pipe()

    def hold() -> None:
        RunLock(tmp_path).acquire()
        os.write(said[1], b"!")
        os.read(ends[0], 1)

    holder = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    holder.start()
    assert os.read(said[0], 1) == b"!"
    before = (tmp_path / "run.lock").read_bytes()
    with pytest.raises(UserError, match=f"process {holder.pid} on {os.uname().nodename}"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "run.lock").read_bytes() == before
    holder.kill()
    holder.join()
    RunLock(tmp_path).acquire()


def test_a_start_that_is_refused_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    dead = {"host": os.uname().nodename, "pid": 1, "since": "then", "token": "of the dead"}
    (tmp_path / "run.lock").write_text(json.dumps(dead))
    lock = RunLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert json.loads((tmp_path / "run.lock").read_text()) == dead

    lock = RunLock(tmp_path / "new/run")
    lock.acquire()
    lock.release()
    assert not (tmp_path / "new").exists()


def test_a_run_that_has_begun_takes_its_lock_away(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    lock.keeps_changes = True
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"host": 1}', b"null"])
def test_a_damaged_lock_of_nobody_is_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.lock").write_bytes(content)
    RunLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        RunLock(tmp_path / "file/run").acquire()


def test_a_worker_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    said, ends = os.pipe(), os.pipe()

    def hold_and_die() -> None:
        RunLock(tmp_path).acquire()
        os.close(ends[1])
        if os.fork() == 0:
            # until the test closes its end
            os.read(ends[0], 1)
            os._exit(0)
        os.write(said[1], b"!")
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=hold_and_die)
    process.start()
    process.join()
    assert os.read(said[0], 1) == b"!"
    RunLock(tmp_path).acquire()
    os.close(ends[1])


def other_host(path: Path) -> None:
    owner = {"host": "elsewhere", "pid": 7, "since": "then", "token": "another"}
    (path / "run.lock").write_text(json.dumps(owner))


def test_the_lock_of_another_machine_is_taken_without_a_sign_of_life(
    tmp_path: Path, hasty: None
) -> None:
    other_host(tmp_path)
    RunLock(tmp_path).acquire()


def touch_forever(path: Path) -> None:
    while True:
        os.utime(path)
        time.sleep(0.02)


def test_the_lock_of_another_machine_is_respected_with_one(tmp_path: Path, hasty: None) -> None:
    other_host(tmp_path)
    process = multiprocessing.get_context("fork").Process(
        target=touch_forever, args=(tmp_path / "run.lock",), daemon=True
    )
    process.start()
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        RunLock(tmp_path).acquire()
    process.kill()


def test_without_locks_of_the_kernel_signs_of_life_decide(
    tmp_path: Path, without_kernel_locks: None
) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire()
    lock._released.set()
    time.sleep(0.1)
    RunLock(tmp_path).acquire()


def test_an_owner_that_lost_its_lock_ends(
    tmp_path: Path, without_kernel_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    lock = RunLock(tmp_path)
    lock.acquire()
    other_host(tmp_path)
    deadline = time.monotonic() + 5
    while not exits and time.monotonic() < deadline:
        time.sleep(0.02)
    lock._released.set()
    assert exits and set(exits) == {1}


def test_an_owner_that_lost_its_lock_gives_no_sign_of_life_for_the_new_one(
    tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    lock, path = RunLock(tmp_path), tmp_path / "run.lock"
    other_host(tmp_path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(SystemExit):
        lock._show_signs_of_life()
    assert path.stat().st_mtime_ns == 0
