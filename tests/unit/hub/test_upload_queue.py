"""Uploads in the background: one at a time, none that a newer one replaces, again if it fails.

A number replaces smaller ones of its own parity.
"""

import threading
import time
from collections.abc import Callable

import pytest

from flame_accel.hub import upload_queue
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.upload_queue import Failure, UploadQueue, retry_request_after_waits

WAIT = 10.0


class Hub:
    """Receives numbers; while `gate` is closed an upload does not end."""

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.received: list[int] = []
        self.problems: list[HubProblem] = []
        self.failures: list[Failure[int]] = []
        self.replaced: list[tuple[int, int]] = []
        self.at_once = self.most_at_once = 0

    def upload(self, number: int) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        self.gate.wait(WAIT)
        self.at_once -= 1
        if self.problems:
            raise self.problems.pop(0)
        self.received.append(number)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def queue(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upload_queue, "FIRST_RETRY_SECONDS", 0.01)
    queue: UploadQueue[int] = UploadQueue(
        hub.upload,
        replaces=lambda new, old: new > old and (new - old) % 2 == 0,
        abort=hub.gate.set,
        report_success=lambda task: None,
        report_failure=hub.failures.append,
        report_replaced=lambda new, old: hub.replaced.append((new, old)),
    )
    yield queue
    queue.abort_and_close()


def test_adding_returns_at_once_and_only_what_a_newer_upload_replaces_is_left_out(hub, queue):
    queue.add(1)
    assert hub.begun.wait(WAIT)
    started = time.monotonic()
    for number in (2, 3, 4, 6):
        queue.add(number)
    assert time.monotonic() - started < 1.0
    assert hub.replaced == [(4, 2), (6, 4)]
    hub.gate.set()
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == []
    assert hub.received == [1, 3, 6] and hub.most_at_once == 1


def test_a_failure_that_may_pass_is_retried_and_another_is_not(hub, queue):
    hub.gate.set()
    hub.problems = [HubProblem("busy", "500"), HubProblem("unreachable", "gone")]
    queue.add(1)
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == []
    assert hub.received == [1]
    assert [failure.retry_seconds for failure in hub.failures] == [0.01, 0.02]
    hub.problems = [HubProblem("refused", "400"), HubProblem("refused", "400")]
    queue.add(2)
    queue.add(3)
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == [2, 3]
    assert hub.failures[-1].retry_seconds is None
    queue.add(4)
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == [3]
    assert hub.received == [1, 4] and hub.replaced == [(4, 2)]


def test_a_newer_upload_replaces_one_that_waits_for_its_next_attempt(hub, queue, monkeypatch):
    monkeypatch.setattr(upload_queue, "FIRST_RETRY_SECONDS", 0.5)
    hub.gate.set()
    hub.problems = [HubProblem("busy", "500")]
    queue.add(1)
    wait_until(lambda: len(hub.failures) == 1)
    queue.add(2)
    queue.add(3)
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == []
    assert hub.received == [2, 3]


def test_an_upload_that_failed_is_made_before_later_ones(hub, queue):
    hub.problems = [HubProblem("busy", "500")]
    queue.add(1)
    assert hub.begun.wait(WAIT)
    queue.add(2)
    hub.gate.set()
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == []
    assert hub.received == [1, 2]


def test_the_hub_says_how_long_to_wait(hub, queue, monkeypatch):
    hub.gate.set()
    hub.problems = [HubProblem("busy", "429", retry_after_seconds=0.2)]
    queue.add(1)
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == []
    assert [failure.retry_seconds for failure in hub.failures] == [0.2]


def test_the_end_waits_a_limited_time_and_names_what_is_missing(hub, queue):
    queue.add(1)
    assert hub.begun.wait(WAIT)
    queue.add(2)
    started = time.monotonic()
    assert queue.retry_at_once_wait_and_list_unfinished(0.1) == [1, 2]
    assert time.monotonic() - started < 5.0


def test_the_end_gives_up_a_hub_that_does_not_answer(hub, queue, monkeypatch):
    monkeypatch.setattr(upload_queue, "UNREACHABLE_SECONDS", 0.2)
    hub.gate.set()
    hub.problems = [HubProblem("unreachable", "down") for _ in range(1000)]
    queue.add(1)
    started = time.monotonic()
    assert queue.retry_at_once_wait_and_list_unfinished(60.0) == [1]
    assert time.monotonic() - started < 10.0


def test_a_request_is_retried_as_often_as_told():
    problems = [HubProblem("busy", "1"), HubProblem("busy", "2")]

    def request() -> str:
        if problems:
            raise problems.pop()
        return "done"

    assert retry_request_after_waits(request, (0.0, 0.0)) == "done"
    problems[:] = [HubProblem("busy", "x")] * 3
    with pytest.raises(HubProblem):
        retry_request_after_waits(request, (0.0, 0.0))
    problems[:] = [HubProblem("no_permission", "x")]
    with pytest.raises(HubProblem, match="x"):
        retry_request_after_waits(request, (100.0,))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_upload_that_fails_in_any_way_ends(hub, queue, monkeypatch):
    def fail(task: int) -> None:
        raise AttributeError("a fault of ours")

    monkeypatch.setattr(queue, "_upload", fail)
    queue.add(1)
    assert queue.retry_at_once_wait_and_list_unfinished(WAIT) == [1]
    assert "a fault of ours" in hub.failures[0].problem.message
