"""Why a request to the Hub failed: one kind and one line, without the access token.

The requests are in `hub_client` and `hub_upload`; what a user is told is in `access`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

ADDRESSES = re.compile(r"(?: for url:?| For more \S+ (?:check|see):?)? '?https?://[^\s']+'?\.?")
"""Addresses in messages of the client, with the words that lead to them."""


Reason = Literal[
    "offline",  # the environment forbids connections
    "no_token",
    "bad_token",
    "read_only_token",
    "no_permission",
    "public",  # the repository is, but should not be
    "missing",  # the repository is gone
    "taken",  # the branch holds a model of another run
    "refused",  # the Hub does not accept the contents
    "local",  # a file cannot be read, or must not be uploaded
    "unreachable",
    "busy",  # an error of the Hub, or too many requests
    "unexpected",
]
WORTH_RETRYING: frozenset[Reason] = frozenset({"unreachable", "busy", "unexpected"})


class HubProblem(Exception):
    """A request that failed.

    Args:
        reason: What kind of failure it is.
        message: What happened, in one line without the access token.
        retry_after_seconds: How long the Hub asks to wait; None if it does not say.
    """

    def __init__(
        self, reason: Reason, message: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_worth_retrying(self) -> bool:
        """Whether the same request may succeed later."""
        return self.reason in WORTH_RETRYING


@contextmanager
def errors_as_hub_problems() -> Iterator[None]:
    """Turns every error that leaves the block into a `HubProblem`."""
    try:
        yield
    except HubProblem:
        raise
    except Exception as error:
        raise classify_error(error) from error


def classify_error(error: Exception) -> HubProblem:
    """The problem that an exception of huggingface_hub, or of what it calls, stands for."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    chain = list(_iterate_causes(error))
    message = _one_line_without_token(error)
    for cause in chain:
        if isinstance(cause, HubProblem):
            return cause
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status == 401 and not isinstance(cause, RepositoryNotFoundError):
                return HubProblem("bad_token", message)
            if status == 403:
                return HubProblem("no_permission", message)
            if status in (401, 404):
                return HubProblem("missing", message)
            if status in (408, 409, 412, 429) or status >= 500:
                return HubProblem(
                    "busy", message, _parse_retry_after_if_seconds(cause.response.headers)
                )
            return HubProblem("refused", message)
    for cause in chain:
        library = type(cause).__module__.partition(".")[0]
        if library in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"):
            return HubProblem("unreachable", message)
        if isinstance(cause, (ConnectionError, TimeoutError)):
            return HubProblem("unreachable", message)
    if isinstance(error, (OSError, ValueError)):
        return HubProblem("local", message)
    return HubProblem("unexpected", message)


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _parse_retry_after_if_seconds(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header; None without one, or for a date."""
    text = headers.get("Retry-After") or ""
    return float(text) if text.isdecimal() else None


def _one_line_without_token(error: BaseException) -> str:
    """What the Hub answered, or else the messages of an exception and its causes, on one line.

    Without the access token, and without the addresses that the client adds.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    causes = list(_iterate_causes(error))
    answers = [cause for cause in causes if isinstance(cause, HfHubHTTPError)]
    if answers:
        status, phrase = answers[0].response.status_code, answers[0].response.reason_phrase
        said = next((answer.server_message for answer in answers if answer.server_message), phrase)
        reason = said.removeprefix(phrase).removeprefix(": ")
        texts = [f"{status} {phrase}" + (f": {reason}" if reason else "")]
    else:
        texts = [str(cause) or type(cause).__name__ for cause in causes]
    text = ADDRESSES.sub("", " ".join(" ".join(dict.fromkeys(texts)).split()))
    token = get_token() or ""
    # an illegal header is quoted as Python writes it
    for spelling in (token, repr(token)[1:-1], repr(token.encode())[2:-1]):
        if spelling:
            text = text.replace(spelling, "<token>")
    return text if len(text) <= 400 else f"{text[:397]}..."
