"""A request to the local Hub, and its answer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from tests.helpers.local_hub.refusals import HubError

Json = dict[str, object]


@dataclass
class Request:
    """A request whose body is still to be read.

    Attributes:
        path: As sent, with its escapes and without the query.
        headers: By name in lower case.
        body: What remains of the body, in chunks.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Iterator[bytes]

    @property
    def parts(self) -> list[str]:
        """The path between its slashes; an escaped slash belongs to a part."""
        return [unquote(part) for part in self.path.strip("/").split("/")]

    def read_body(self) -> bytes:
        """The whole body; may be asked for again."""
        body = b"".join(self.body)
        self.body = iter((body,))
        return body

    def read_json(self) -> Json:
        text = self.read_body()
        return json.loads(text) if text else {}


@dataclass
class Answer:
    """Status, headers, and a body in memory or in a file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""

    @classmethod
    def json(cls, value: object, status: int = 200, **headers: str) -> "Answer":
        return cls(
            status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()
        )

    @classmethod
    def error(cls, error: HubError) -> "Answer":
        """A refusal as the Hub words it: code and sentence in headers, the sentence in the body."""
        headers = {
            "X-Error-Message": error.message.encode("ascii", "replace").decode(),
            **error.headers,
        }
        if error.code:
            headers["X-Error-Code"] = error.code
        return cls.json({"error": error.message, **error.fields}, error.status, **headers)
