"""A background thread that makes uploads, one at a time and in order, but for needless ones.

Whoever adds an upload never waits for it. An upload that fails is tried again, after longer and
longer waits, until it succeeds, a newer one takes its place, or time is up. What an upload consists
of, and whose place it takes, is up to functions of the caller; this module only decides when.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flame_accel.hub.hub_problem import HubProblem

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


def retry_request_after_waits(
    request: Callable[[], Result], waits_seconds: Sequence[float]
) -> Result:
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
        replaces: Whether the first of two uploads, the newer one, makes the second one needless.
        abort: Ends the upload that is being made, from another thread.
        report_success: Called by the thread after each upload.
        report_failure: Called by the thread after each attempt that failed.
        report_replaced: Called with the newer and the older upload when the older one is dropped.
    """

    def __init__(
        self,
        upload: Callable[[Task], None],
        *,
        replaces: Callable[[Task, Task], bool],
        abort: Callable[[], None],
        report_success: Callable[[Task], None],
        report_failure: Callable[[Failure[Task]], None],
        report_replaced: Callable[[Task, Task], None],
    ) -> None:
        self._upload, self._replaces, self._abort = upload, replaces, abort
        self._report_success, self._report_failure = report_success, report_failure
        self._report_replaced = report_replaced
        self._changed = threading.Condition()
        self._waiting: list[Task] = []
        self._current: Task | None = None
        self._given_up: list[Task] = []
        self._attempts = 0
        self._ending_since: float | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, task: Task) -> None:
        """Adds an upload, which takes the place of those that it replaces; returns at once."""
        with self._changed:
            replaced = [
                old for old in (*self._given_up, *self._waiting) if self._replaces(task, old)
            ]
            self._given_up = [old for old in self._given_up if old not in replaced]
            self._waiting = [old for old in self._waiting if old not in replaced] + [task]
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._upload_until_closed, name="hub-uploads", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        for old in replaced:
            self._report_replaced(task, old)

    def unfinished_or_given_up(self) -> list[Task]:
        """Uploads that are being made, wait, or were given up; the oldest first."""
        with self._changed:
            current = [] if self._current is None else [self._current]
            return [*self._given_up, *current, *self._waiting]

    def retry_at_once_wait_and_list_unfinished(self, limit_seconds: float) -> list[Task]:
        """Waits until everything is uploaded, given up, or time is up; returns what is missing."""
        deadline = time.monotonic() + limit_seconds
        with self._changed:
            self._ending_since = time.monotonic()
            # a failed upload waits for its next attempt, perhaps for minutes
            self._attempts = 0
            self._changed.notify_all()
            while self._current is not None or self._waiting:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
        return self.unfinished_or_given_up()

    def abort_and_close(self) -> None:
        """Ends the upload that is being made, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._abort()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _upload_until_closed(self) -> None:
        while (task := self._wait_for_next_task()) is not None:
            try:
                self._upload(task)
            except HubProblem as problem:
                self._report_requeue_and_wait(task, problem)
            except Exception as error:
                problem = HubProblem("local", f"{type(error).__name__}: {error}")
                self._report_requeue_and_wait(task, problem)
            else:
                if not self._closed:
                    self._report_success(task)
                self._attempts = 0
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

    def _wait_for_next_task(self) -> Task | None:
        """The oldest upload that waits, once there is one; None when the queue is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._current = self._waiting.pop(0)
            return self._current

    def _report_requeue_and_wait(self, task: Task, problem: HubProblem) -> None:
        """Puts a failed upload back and waits, or gives it up."""
        with self._changed:
            if self._closed:
                return
            ending_since = self._ending_since
        delay = self._retry_delay_seconds_or_none(problem, ending_since)
        if problem.is_worth_retrying:
            self._attempts += 1
        self._report_failure(Failure(task=task, problem=problem, retry_seconds=delay))
        retry_at = time.monotonic() + (delay or 0.0)
        with self._changed:
            self._current = None
            self._changed.notify_all()
            newer = next((new for new in self._waiting if self._replaces(new, task)), None)
            if newer is None and delay is None:
                self._given_up.append(task)
            elif newer is None:
                # before those that were added after it: the newest one is the last on a branch
                self._waiting.insert(0, task)
        if newer is not None:
            self._report_replaced(newer, task)
        with self._changed:
            while not self._closed and (remaining := retry_at - time.monotonic()) > 0:
                if self._ending_since != ending_since:
                    # the run has ended: the last attempts begin now
                    return
                self._changed.wait(remaining)

    def _retry_delay_seconds_or_none(
        self, problem: HubProblem, ending_since: float | None
    ) -> float | None:
        """How long to wait before the next attempt; None if there is none."""
        if not problem.is_worth_retrying:
            return None
        delay = min(FIRST_RETRY_SECONDS * 2**self._attempts, MAX_RETRY_SECONDS)
        delay = max(delay, problem.retry_after_seconds or 0.0)
        if ending_since is None or time.monotonic() + delay - ending_since <= UNREACHABLE_SECONDS:
            return delay
        return None
