"""How a process of a run ends: as Python ends it, but without tearing the interpreter down.

Native threads outlive the main thread: those of gloo free the tensors of their last collective, and
need Python's lock for it. A thread that asks for the lock while the interpreter is torn down is
unwound by Python, in the middle of a destructor, and C++ then aborts the process: "terminate called
without an active exception", SIGABRT instead of the exit code of a run that had done everything.
Standard library only.
"""

import atexit
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_hung_threads = threading.Event()
"""Set if a thread hangs for which, or for whose exit functions, Python would wait for ever."""


def end_without_waiting() -> None:
    """Has the process end as soon as its block does: no thread or exit function is waited for."""
    _hung_threads.set()


@contextmanager
def exit_without_teardown() -> Iterator[None]:
    """The block is all that the program does: how it ends is how the process ends.

    Threads that are no daemons are waited for, and functions of `atexit` are called that were
    registered in the block, unless `end_without_waiting` was called. Then the process ends at once,
    with the exit code of the block.
    """
    code = 1

    def flush_and_exit() -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        # what native code printed
        ctypes.CDLL(None).fflush(None)
        os._exit(code)

    # the first to be registered is the last to be called
    atexit.register(flush_and_exit)
    try:
        yield
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        raise
    finally:
        if _hung_threads.is_set():
            error = sys.exc_info()[1]
            if error is not None and not isinstance(error, SystemExit):
                sys.excepthook(type(error), error, error.__traceback__)
            flush_and_exit()
