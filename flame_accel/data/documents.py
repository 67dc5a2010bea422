"""Records, documents, and what stands in the place of a document that was skipped.

Sources read records (texts or conversations); an encoder makes documents of tokens from them.
Nothing here reads or encodes anything.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

Conversation = list[dict[str, Any]]
"""Messages, each with the keys "role" and "content", and whatever else the chat template reads."""
Record = str | Conversation
"""One text or one conversation, as a source holds it."""


class Skipped(NamedTuple):
    """Stands in the place of a record that gives no document."""

    why: Literal["empty", "damaged", "held out"]
    """It has no text; it cannot be read or is not text; it belongs to the other side of the
    split between training and evaluation."""
    where: str = ""
    """File and line, row or index."""
    what: str = ""
    """What is wrong with it."""


class Document(NamedTuple):
    """The tokens of one document, at least one, bos and eos included."""

    tokens: np.ndarray
    """[n], any integer dtype."""
    targets: np.ndarray | None = None
    """bool [n], the tokens that the loss is computed for (the first is never predicted); None:
    all of them."""


CharacterSpan = tuple[int, int]
"""(start, stop) in characters of a text."""


class AnsweredText(NamedTuple):
    """A text of which only the answers are targets."""

    text: str
    answers: list[CharacterSpan]


Encode = Callable[[Record | Skipped], Document | Skipped]
"""Makes a document of a record; a `Skipped` is returned unchanged."""


class EncodedRecord(NamedTuple):
    """What a record of a dataset gives."""

    document: Document | Skipped
    num_text_bytes: int
    """Length of the record's text in UTF-8; 0 for a record that the source skipped."""


class PositionedRecord(NamedTuple):
    """A record of a shard, and where to continue reading after it."""

    record: Record | Skipped
    next_position: int
    """Position in the shard, in the form that its reader defines."""


def count_utf8_bytes(record: Record | Skipped) -> int:
    """Length in UTF-8 of a text, or of all messages of a conversation; 0 for a `Skipped`."""
    if isinstance(record, str):
        return len(record.encode("utf-8", "surrogatepass"))
    if isinstance(record, Skipped):
        return 0
    contents = (message["content"] for message in record)
    return sum(count_utf8_bytes(content) for content in contents if isinstance(content, str))


def first_is_conversation(records: Iterable[Record | Skipped]) -> bool:
    """Whether the first record that was not skipped is a conversation: then all are."""
    return isinstance(next((r for r in records if not isinstance(r, Skipped)), ""), list)
