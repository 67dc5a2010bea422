"""What worker processes of the data stream have in common: they end with the process of the run.

What they work on is in `loading.workers` and `cache.chunk_encoder`.
"""

import multiprocessing
import os
import threading

CHECK_PARENT_SECONDS = 1.0
"""Interval at which a worker checks that the process of the run is still there."""


def start_exit_with_parent_thread() -> None:
    """Start a thread that exits this process when the one that started it is gone, even if killed.

    torch's own check lets the worker return, which then waits without end to hand over the rows
    that it has read ahead: nobody empties the pipe.
    """
    threading.Thread(target=_wait_for_parent_then_exit, name="parent watch", daemon=True).start()


def _wait_for_parent_then_exit() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    parent = os.getppid()
    # the sentinel works at once, unless a process that was forked later still holds its other end
    while run.is_alive() and os.getppid() == parent:
        run.join(CHECK_PARENT_SECONDS)
    os._exit(1)
