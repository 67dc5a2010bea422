"""Files with one JSON object a line, each with its `step`: appended to, read, cut back to a step.

A full or broken disk ends no run, and a damaged line costs no other. What the records hold is
decided by the owners of the files: `metrics_file` and `evaluations_file`.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from flame_accel.files import write_bytes_atomically
from flame_accel.io_errors import describe_if_io_error
from flame_accel.json_text import parse_json_text
from flame_accel.observe.console import get_logger
from flame_accel.observe.damaged_records import move_aside, warn_once

RecordT = TypeVar("RecordT")
Decoder = Callable[[Mapping[str, Any]], RecordT]
"""Makes a record of a JSON object whose `step` is an integer; raises KeyError, ValueError or
TypeError for one that is none."""
MOST_UNWRITTEN = 10_000
"""Records that are kept in memory at most while the file cannot be written."""


class _Line(NamedTuple, Generic[RecordT]):
    """A line of the file."""

    number: int
    """From 1."""
    text: bytes
    """With its end, if it has one."""
    step: int
    """-1 if the line is damaged."""
    record: RecordT | None
    """None if the line is damaged."""


class StepRecordsFile(Generic[RecordT]):
    """Appends records to a file. A full or broken disk ends no run.

    Records that cannot be written are kept in memory and written with the next one that can be.

    Args:
        path: Created by the first record.
        decode: What `read_step_records` reads a line with; a line that it refuses is damaged.
    """

    def __init__(self, path: Path, decode: Decoder[RecordT]) -> None:
        self.path = path
        self._decode = decode
        self._unwritten: deque[bytes] = deque(maxlen=MOST_UNWRITTEN)

    def append_object(self, record: Mapping[str, Any]) -> None:
        """Appends one line; logs the first of several failures in a row.

        Args:
            record: With its `step`, and without NaN or infinities.
        """
        self._unwritten.append(json.dumps(record, allow_nan=False).encode() + b"\n")
        earlier = len(self._unwritten) - 1
        try:
            _append_or_leave_unchanged(self.path, b"".join(self._unwritten))
        except OSError as error:
            if not earlier:
                get_logger().warning(
                    "%s cannot be written, and records are kept in memory until it can: %s",
                    self.path,
                    describe_if_io_error(error),
                )
            return
        if earlier:
            get_logger().info("%s is written again, with %d earlier records", self.path, earlier)
        self._unwritten.clear()

    def go_back(self, step: int) -> None:
        """Deletes the records after `step`, whose numbers will come again.

        Raises:
            OSError: The file cannot be read or written.
        """
        self._unwritten.clear()
        delete_step_records_after(self.path, step, self._decode)


def _append_or_leave_unchanged(path: Path, content: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            # half a line would spoil the next one
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise


def read_step_records(existing_file: Path, decode: Decoder[RecordT]) -> list[RecordT]:
    """The records of a file; a torn last line and damaged ones are left out."""
    lines = _read_lines(existing_file, decode)
    damaged = [line.number for line in lines if line.record is None and line is not lines[-1]]
    if damaged:
        problem = f"has {len(damaged)} damaged lines, the first is line {damaged[0]}"
        warn_once(existing_file, problem, "they are passed over")
    return [line.record for line in lines if line.record is not None]


def _read_lines(path: Path, decode: Decoder[RecordT]) -> list[_Line[RecordT]]:
    texts = path.read_bytes().splitlines(keepends=True)
    return [_parse_line(number, text, decode) for number, text in enumerate(texts, 1)]


def _parse_line(number: int, text: bytes, decode: Decoder[RecordT]) -> _Line[RecordT]:
    """A line and its record, which is None if the line is torn or is no record.

    An object without its last brace is none: the end of a line tells nothing more.
    """
    try:
        stored = parse_json_text(text)
        if isinstance(stored, dict) and type(stored.get("step")) is int:
            return _Line(number, text, stored["step"], decode(stored))
    except (KeyError, ValueError, TypeError, RecursionError):
        pass
    return _Line(number, text, -1, None)


def non_finite_to_string(value: float) -> float | str:
    """A number, or "nan", "inf" and "-inf" for those that JSON does not have."""
    return value if math.isfinite(value) else str(value)


def number_from_stored(stored: float | str) -> float:
    """The inverse of `non_finite_to_string`; raises ValueError or TypeError for what is none."""
    return stored if isinstance(stored, (int, float)) else float(stored)


def delete_step_records_after(path: Path, step: int, decode: Decoder[RecordT]) -> None:
    """Deletes the records after `step`, and an incomplete last line, from a file.

    A file with other damage is kept under another name.
    """
    if not path.exists():
        return
    lines = _read_lines(path, decode)
    kept = [line for line in lines if line.record is not None and line.step <= step]
    torn = bool(lines) and lines[-1].record is None and not lines[-1].text.endswith(b"\n")
    damaged = [line.number for line in lines[: -1 if torn else None] if line.record is None]
    if damaged:
        get_logger().warning(
            "%s: %d damaged lines are passed over, the first is line %d",
            *(path, len(damaged), damaged[0]),
        )
        move_aside(path)
    elif torn:
        get_logger().info("%s: the last line is incomplete and is passed over", path)
    write_bytes_atomically(path, b"".join(line.text.rstrip() + b"\n" for line in kept))
