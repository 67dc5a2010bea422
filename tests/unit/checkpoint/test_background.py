"""The thread beside training: one thing at a time, whose errors reach whoever waits for it."""

import threading

import pytest

from flame_accel.checkpoint.background import BackgroundThread
from flame_accel.observe import get_logger


@pytest.fixture
def thread() -> BackgroundThread:
    return BackgroundThread("the write")


def fail() -> None:
    raise OSError("no space")


def test_waiting_for_nothing_takes_no_time(thread):
    assert not thread.is_busy
    thread.wait()
    thread.wait_or_log(1000)


def test_who_waits_gets_the_error_once_and_the_next_thing_is_a_new_one(thread):
    thread.start(fail)
    with pytest.raises(OSError, match="no space"):
        thread.wait()
    thread.wait()
    done: list[int] = []
    thread.start(lambda: done.append(1))
    thread.wait()
    assert done == [1] and not thread.is_busy


def test_what_is_being_done_must_be_waited_for(thread):
    released = threading.Event()
    thread.start(released.wait)
    assert thread.is_busy
    with pytest.raises(AssertionError):
        thread.start(fail)
    released.set()
    thread.wait()


def test_when_an_error_ends_the_run_waiting_is_limited(thread, monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(get_logger(), "error", lambda text, *values: logged.append(text % values))
    released = threading.Event()
    thread.start(released.wait)
    thread.wait_or_log(0.01)
    assert thread.is_busy and logged == ["the write has not ended after 0 s"]
    released.set()
    thread.wait()
    thread.start(fail)
    thread.wait_or_log(10)
    assert logged[1:] == ["the write: no space"]
