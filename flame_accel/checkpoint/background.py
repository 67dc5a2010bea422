"""A thread beside training that does one thing at a time; who waits for it gets its errors.

A thread, not a process: when a run is killed, nothing writes to its folder any more. What it writes
is defined in `snapshot`.
"""

import threading
from collections.abc import Callable

from flame_accel.observe import get_logger


class BackgroundThread:
    """Does one thing at a time in a thread.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, action: Callable[[], object]) -> None:
        """Begins something. What was begun before must have been waited for."""
        assert self._thread is None

        def run() -> None:
            try:
                action()
            except BaseException as error:
                self._error = error

        # a process that ends does not wait for a disk that hangs
        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether something was begun and has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits for what was begun, and raises its error. At once if nothing was."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def wait_or_log(self, limit_seconds: float) -> None:
        """Waits for a limited time, and logs what goes wrong: another error is being raised."""
        if self._thread is None:
            return
        self._thread.join(limit_seconds)
        if self._thread.is_alive():
            get_logger().error("%s has not ended after %.0f s", self.name, limit_seconds)
        elif self._error is not None:
            get_logger().error("%s: %s", self.name, self._error)
