"""Ends code from outside that loops: an exception is raised in its thread once its time is over.

It works in any thread and after a fork, unlike an alarm. The exception comes between two
instructions of Python; a single long call of native code ends first.
"""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

WATCH_SECONDS = 0.2
"""How exact the end is."""


class TimeLimitReached(Exception):
    """The code of a block took longer than it may."""


class _Block:
    """A block of code that is running."""

    def __init__(self, seconds: float) -> None:
        self.thread = threading.get_ident()
        self.deadline = time.monotonic() + seconds
        self.is_over = False


_guard = threading.Lock()
_running: set[_Block] = set()
_watching_process: int | None = None


def _forget_blocks_of_parent() -> None:
    """The thread that watches does not exist in a child, and the guard may be held there."""
    global _guard
    _guard = threading.Lock()
    _running.clear()


os.register_at_fork(after_in_child=_forget_blocks_of_parent)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeLimitReached` in the block once it has taken so long; not to be nested."""
    _start_watching_once_per_process()
    block = _Block(seconds)
    with _guard:
        _running.add(block)
    try:
        yield
        with _guard:
            _running.discard(block)
        while block.is_over:
            # the exception has been sent and arrives here, not somewhere behind the block
            time.sleep(0.001)
    finally:
        _running.discard(block)


def _start_watching_once_per_process() -> None:
    global _watching_process
    if _watching_process != os.getpid():
        _watching_process = os.getpid()
        threading.Thread(target=_watch, name="time limit", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(WATCH_SECONDS)
        with _guard:
            for block in [each for each in _running if time.monotonic() > each.deadline]:
                _running.discard(block)
                block.is_over = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(block.thread), ctypes.py_object(TimeLimitReached)
                )
