"""What a record must be: text, or a conversation, in a column of its own. No files here.

The whole of a file is of another form if its first record is: that is an error. Any other record
is merely damaged.
"""

import json
from typing import Any, NamedTuple

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.files import choose_text_column


class Wanted(NamedTuple):
    """What is read of a record."""

    column: str | None
    """None: the first that there is of text, content and messages."""
    max_bytes: int
    """Longer ones are damaged."""


def record_of(columns: object, wanted: Wanted, where: str, first: bool) -> Record | Skipped:
    """Text or conversation of a record with named columns.

    Args:
        columns: the record; values that could not be decoded are UnicodeDecodeError.
        wanted: what to take of it.
        where: where it stands.
        first: whether it is the first of its file.

    Raises:
        UserError: the first record has no such column, or something else in it.
    """
    if not isinstance(columns, dict):
        kind = type(columns).__name__
        what = f"a record must be an object with named columns, not {kind}"
        return Skipped("damaged", where, what)
    try:
        column = choose_text_column(columns, wanted.column, where)
        return _checked(columns[column], column, wanted.max_bytes, where)
    except UserError as error:
        if first:
            raise
        return Skipped("damaged", where, error.what)


def parse(data: bytes, where: str) -> Any:
    """The value of JSON in UTF-8, or Skipped."""
    try:
        return json.loads(data.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        what = not_utf8(error)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        what = f"not JSON: {error.msg} at column {error.colno}{line}"
    # nested too deeply, or a number of thousands of digits
    except (RecursionError, ValueError) as error:
        what = f"no JSON that can be read: {error}"
    return Skipped("damaged", where, what)


def not_utf8(error: UnicodeDecodeError) -> str:
    """The first bytes that are none, and where they are."""
    return f"not UTF-8 at byte {error.start} ({error.object[error.start : error.end]!r})"


def too_long(num_bytes: int, max_bytes: int) -> str:
    """How long a record is, and how long it may be."""
    return f"{num_bytes} bytes, more than training.max_document_bytes = {max_bytes}"


def _checked(value: object, column: str, max_bytes: int, where: str) -> Record | Skipped:
    if value is None or value == "" or value == []:
        return Skipped("empty", where, f"no text in column {column!r}")
    if isinstance(value, UnicodeDecodeError):
        return Skipped("damaged", where, not_utf8(value))
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = _as_json(value, column, where)
    else:
        raise UserError(
            f"column {column!r} holds {type(value).__name__}, not text",
            where=where,
            remedy="name another column, or turn the values into strings",
        )
    # most records need not be encoded for the verdict
    if 4 * len(text) > max_bytes or not text.isascii():
        try:
            num_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            place = f" at character {error.start}" if text is value else ""
            what = f"column {column!r} holds half a surrogate pair{place}"
            return Skipped("damaged", where, what)
        if num_bytes > max_bytes:
            return Skipped("damaged", where, too_long(num_bytes, max_bytes))
    return value


def _as_json(value: list[Any], column: str, where: str) -> str:
    """A conversation as JSON.

    Raises:
        UserError: it is none.
    """
    try:
        fault = next(filter(None, map(_fault, value)), None)
        text = json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        fault, text = str(error), ""
    if fault is None:
        return text
    raise UserError(
        f"column {column!r} holds a list that is no conversation: {fault}",
        where=where,
        remedy='write conversations as [{"role": "user", "content": "..."}, ...]',
    )


def _fault(message: object) -> str | None:
    """What is wrong with a message of a conversation."""
    if not isinstance(message, dict):
        return f"{type(message).__name__} instead of an object with role and content"
    missing = [name for name in ("role", "content") if name not in message]
    if missing:
        return f"a message has no {' and no '.join(missing)}, but {', '.join(message) or 'nothing'}"
    if not isinstance(message["role"], str):
        return f"a message has a role of type {type(message['role']).__name__}"
    # calls of tools have no content, images and text are a list
    if not isinstance(message["content"], (str, list, type(None))):
        return f"a message has a content of type {type(message['content']).__name__}"
    return None
