"""Faults that the local Hub shows on request, and its record of the requests that it got.

A fault meets a set number of requests that match it, and is gone then. The record holds no header
and no body, so that a token cannot get into the output of a failing test.
"""

import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

from tests.helpers.local_hub.messages import Answer
from tests.helpers.local_hub.refusals import HubError

USUAL_REFUSALS = {
    # of a token that has expired
    401: HubError(401, "Invalid credentials in Authorization header"),
    403: HubError(403, "Forbidden: you have no rights to do this"),
    404: HubError(404, "Repository not found", "RepoNotFound"),
    409: HubError(409, "Another conflicting operation is in progress"),
    429: HubError(429, "You have been rate-limited"),
}


class RecordedRequest(NamedTuple):
    """A request that the server got.

    Attributes:
        method: `GET`, `PUT`, ...
        path: As sent, without the query.
        authorized: It carried an `Authorization` header.
        body_bytes: Bytes of its body that arrived.
        status: Status of the answer; None where the connection was broken.
    """

    method: str
    path: str
    authorized: bool
    body_bytes: int
    status: int | None


@dataclass
class Fault:
    """What happens to requests instead of, or before, their answer.

    Attributes:
        method: The requests that it is for; every method if empty.
        path_contains: Part of their path.
        times: How many of them it hits; `float("inf")` for all.
        skip: How many of them go through before.
        with_status: Answered with this status; nothing is carried out.
        retry_after: Seconds, told to the client together with the status.
        message: Sentence of the answer with that status.
        breaks_connection: The connection is cut half-way: half-way through the body of the request
            where it has one, else half-way through the body of the answer.
        delay: Seconds before the request is carried out.
    """

    method: str = ""
    path_contains: str = ""
    times: float = 1
    skip: int = 0
    with_status: int | None = None
    retry_after: int | None = None
    message: str = ""
    breaks_connection: bool = False
    delay: float = 0.0

    def matches(self, method: str, path: str) -> bool:
        return self.method in ("", method) and self.path_contains in path


@dataclass
class Faults:
    """Faults that wait for their requests; the oldest that matches hits."""

    waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> None:
        with self._lock:
            self.waiting.append(fault)

    def clear(self) -> None:
        with self._lock:
            self.waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that hits a request, which is then spent once more."""
        with self._lock:
            for fault in self.waiting:
                if not fault.matches(method, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self.waiting.remove(fault)
                return fault
        return None


def refuse(fault: Fault) -> Answer:
    """The answer with the status of a fault."""
    assert fault.with_status is not None
    usual = USUAL_REFUSALS.get(fault.with_status)
    message = fault.message or (usual.message if usual else HTTPStatus(fault.with_status).phrase)
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    code = usual.code if usual else ""
    return Answer.error(HubError(fault.with_status, message, code, headers=headers))
