"""A background thread that makes uploads, one at a time; of those that wait, only the newest.

Whoever adds an upload never waits for it. An upload that fails is tried again, after longer and
longer waits, until it succeeds, a newer one takes its place, or time is up. What an upload consists
of is up to the function that makes it; this module only decides when.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flame_accel.hub.hub_client import HubProblem

FIRST_RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 600.0
UNREACHABLE_SECONDS = 60.0
"""Longest time at the end of a run, in seconds, during which every attempt may fail."""

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure(Generic[Task]):
    """An upload that failed, perhaps for the time being."""

    task: Task
    problem: HubProblem
    retry_seconds: float | None
    """When it is tried again; None if it is not."""


def retry(request: Callable[[], Result], waits_seconds: Sequence[float]) -> Result:
    """Makes a request, and again after each of these waits while that is worth it.

    Raises:
        HubProblem: Of the last attempt, or one that retrying cannot help.
    """
    for wait in waits_seconds:
        try:
            return request()
        except HubProblem as problem:
            if not problem.is_worth_retrying:
                raise
            time.sleep(max(wait, problem.retry_after_seconds or 0.0))
    return request()


class UploadQueue(Generic[Task]):
    """Uploads in the background.

    Args:
        upload: Makes an upload; called by the thread. A `HubProblem` is a failure.
        abort: Ends the upload that is being made, from another thread.
        report_success: Called by the thread after each upload.
        report_failure: Called by the thread after each attempt that failed.
    """

    def __init__(
        self,
        upload: Callable[[Task], None],
        *,
        abort: Callable[[], None],
        report_success: Callable[[Task], None],
        report_failure: Callable[[Failure[Task]], None],
    ) -> None:
        self._upload, self._abort = upload, abort
        self._report_success, self._report_failure = report_success, report_failure
        self._changed = threading.Condition()
        self._waiting: Task | None = None
        self._current: Task | None = None
        self._given_up: Task | None = None
        self._attempts = 0
        self._ending_since: float | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, task: Task) -> Task | None:
        """Adds an upload; returns at once, with the upload that it replaces."""
        with self._changed:
            replaced, self._waiting = self._waiting, task
            self._given_up = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hub-uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return replaced

    def unfinished(self) -> list[Task]:
        """Uploads that are being made, wait, or were given up; the oldest first."""
        with self._changed:
            tasks = (self._given_up, self._current, self._waiting)
            return [task for task in tasks if task is not None]

    def finish(self, limit_seconds: float) -> list[Task]:
        """Waits until everything is uploaded, given up, or time is up; returns what is missing."""
        deadline = time.monotonic() + limit_seconds
        with self._changed:
            self._ending_since = time.monotonic()
            # a failed upload waits for its next attempt, perhaps for minutes
            self._attempts = 0
            self._changed.notify_all()
            while self._current is not None or self._waiting is not None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
        return self.unfinished()

    def close(self) -> None:
        """Ends the upload that is being made, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._abort()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while (task := self._take_next()) is not None:
            try:
                self._upload(task)
            except HubProblem as problem:
                self._handle_failure(task, problem)
            except Exception as error:
                problem = HubProblem("local", f"{type(error).__name__}: {error}")
                self._handle_failure(task, problem)
            else:
                if not self._closed:
                    self._report_success(task)
                self._attempts = 0
                self._finish_current(given_up=None)

    def _take_next(self) -> Task | None:
        """The newest upload, once there is one; None when the queue is closed."""
        with self._changed:
            while self._waiting is None and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._current, self._waiting = self._waiting, None
            return self._current

    def _finish_current(self, *, given_up: Task | None) -> None:
        with self._changed:
            self._current, self._given_up = None, given_up
            self._changed.notify_all()

    def _handle_failure(self, task: Task, problem: HubProblem) -> None:
        """Puts a failed upload back and waits, or gives it up."""
        with self._changed:
            if self._closed:
                return
            ending_since = self._ending_since
        delay = self._retry_delay_seconds(problem, ending_since)
        self._report_failure(Failure(task=task, problem=problem, retry_seconds=delay))
        if delay is None:
            self._finish_current(given_up=task)
            return
        retry_at = time.monotonic() + delay
        with self._changed:
            if self._waiting is None:
                self._waiting = task
            self._current = None
            while not self._closed and (remaining := retry_at - time.monotonic()) > 0:
                if self._ending_since != ending_since:
                    # the run has ended: the last attempts begin now
                    return
                self._changed.wait(remaining)

    def _retry_delay_seconds(self, problem: HubProblem, ending_since: float | None) -> float | None:
        """How long to wait before the next attempt; None if there is none."""
        if not problem.is_worth_retrying:
            return None
        delay = min(FIRST_RETRY_SECONDS * 2**self._attempts, MAX_RETRY_SECONDS)
        self._attempts += 1
        delay = max(delay, problem.retry_after_seconds or 0.0)
        if ending_since is None or time.monotonic() + delay - ending_since <= UNREACHABLE_SECONDS:
            return delay
        return None
