"""Refusals of the local Hub."""

from collections.abc import Mapping


class HubError(Exception):
    """A refusal: its status, the Hub's code for it, and a sentence.

    Attributes:
        status: HTTP status.
        code: What the Hub sends as `X-Error-Code`, from which the client picks its exception.
        headers: Further headers of the answer.
        fields: Further fields of the answer beside `error`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.fields = dict(headers or {}), dict(fields or {})
