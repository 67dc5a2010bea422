"""What a record must be: a text or a conversation, in a column of its own.

If the first record of a file has another form, the whole file does: that is an error. Any other
such record is only damaged. Nothing here reads files.
"""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from flame_accel.config import TrainingConfig
from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped

TEXT_COLUMNS = ("text", "content", "messages")
MAX_DOCUMENT_BYTES = TrainingConfig().max_document_bytes
"""Default of `training.max_document_bytes`."""
TEXT_COLUMN_FLAG = "--training.text_column"


class RecordColumn(NamedTuple):
    """Which column of a record is read, and how long it may be."""

    name: str | None = None
    """None: the first existing one of `TEXT_COLUMNS`."""
    max_bytes: int = MAX_DOCUMENT_BYTES
    """Longer records count as damaged."""


def choose_text_column(
    columns: Collection[str], text_column: str | None, error_location: str
) -> str:
    """The column that holds texts or conversations.

    Args:
        columns: those that there are.
        text_column: the one that is asked for; None: the first existing one of `TEXT_COLUMNS`.
        error_location: place of the record, for the error.

    Raises:
        UserError: no such column; lists those that there are.
    """
    wanted = (text_column,) if text_column else TEXT_COLUMNS
    for column in wanted:
        if column in columns:
            return column
    raise UserError(
        f"no column {' or '.join(map(repr, wanted))}; there are: {', '.join(columns) or 'none'}",
        where=error_location,
        remedy=f"name the column that holds the text with {TEXT_COLUMN_FLAG}",
    )


def extract_record(
    columns: object,
    record_column: RecordColumn,
    error_location: str,
    *,
    raise_for_wrong_column: bool,
) -> Record | Skipped:
    """The text or conversation of a record with named columns.

    Args:
        columns: the record, a dict; a value that could not be decoded is its UnicodeDecodeError.
        record_column: what to take of it.
        error_location: its file and line, or the like.
        raise_for_wrong_column: as for the first record of a file; else a record with a wrong column
            is skipped as damaged.

    Raises:
        UserError: no such column, or something else than text in it, and `raise_for_wrong_column`.
    """
    if not isinstance(columns, dict):
        kind = type(columns).__name__
        what = f"a record must be an object with named columns, not {kind}"
        return Skipped("damaged", error_location, what)
    try:
        column = choose_text_column(columns, record_column.name, error_location)
        return _check_value_raise_if_wrong_type(
            columns[column], column, record_column.max_bytes, error_location
        )
    except UserError as error:
        if raise_for_wrong_column:
            raise
        return Skipped("damaged", error_location, error.what)


def parse_json_or_skipped(data: bytes, error_location: str) -> object:
    """The value of a JSON text in UTF-8; `Skipped` if it is not valid."""
    try:
        return json.loads(data.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        what = describe_utf8_error(error)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        what = f"not JSON: {error.msg} at column {error.colno}{line}"
    # nested too deeply, or a number of thousands of digits
    except (RecursionError, ValueError) as error:
        what = f"JSON that cannot be read: {error}"
    return Skipped("damaged", error_location, what)


def describe_utf8_error(error: UnicodeDecodeError) -> str:
    """The first bytes that are not UTF-8, and where they are."""
    return f"not UTF-8 at byte {error.start} ({error.object[error.start : error.end]!r})"


def describe_excess_length(num_bytes: int, max_bytes: int) -> str:
    """How long a record is, and how long it may be at most."""
    return f"{num_bytes} bytes, more than training.max_document_bytes = {max_bytes}"


def _check_value_raise_if_wrong_type(
    value: object, column: str, max_bytes: int, error_location: str
) -> Record | Skipped:
    if value is None or value == "" or value == []:
        return Skipped("empty", error_location, f"no text in column {column!r}")
    if isinstance(value, UnicodeDecodeError):
        return Skipped("damaged", error_location, describe_utf8_error(value))
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = _check_and_serialize_conversation(value, column, error_location)
    else:
        raise UserError(
            f"column {column!r} holds {type(value).__name__}, not text",
            where=error_location,
            remedy="name another column, or turn the values into strings",
        )
    # most records need not be encoded to know this
    if 4 * len(text) > max_bytes or not text.isascii():
        try:
            num_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            place = f" at character {error.start}" if text is value else ""
            what = f"column {column!r} holds half a surrogate pair{place}"
            return Skipped("damaged", error_location, what)
        if num_bytes > max_bytes:
            return Skipped("damaged", error_location, describe_excess_length(num_bytes, max_bytes))
    return value


def _check_and_serialize_conversation(value: list[Any], column: str, error_location: str) -> str:
    """A conversation as JSON.

    Raises:
        UserError: the list is not a conversation.
    """
    try:
        fault = next(filter(None, map(_find_message_fault, value)), None)
        text = json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        fault, text = str(error), ""
    if fault is None:
        return text
    raise UserError(
        f"column {column!r} holds a list that is not a conversation: {fault}",
        where=error_location,
        remedy='write conversations as [{"role": "user", "content": "..."}, ...]',
    )


def _find_message_fault(message: object) -> str | None:
    """What is wrong with a message of a conversation; None: nothing."""
    if not isinstance(message, dict):
        return f"{type(message).__name__} instead of an object with role and content"
    missing = [name for name in ("role", "content") if name not in message]
    if missing:
        return f"a message has no {' and no '.join(missing)}, but {', '.join(message) or 'nothing'}"
    if not isinstance(message["role"], str):
        return f"a message has a role of type {type(message['role']).__name__}"
    # tool calls have no content; images with text are a list
    if not isinstance(message["content"], (str, list, type(None))):
        return f"a message has a content of type {type(message['content']).__name__}"
    return None
