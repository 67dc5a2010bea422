"""metrics.jsonl: one JSON object for each record of a run, written and read in this one place.

JSON has neither NaN nor infinities: they are stored as the strings "nan", "inf" and "-inf", and
read back as numbers. Which records a run writes is decided in `metric_logger`.
"""

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flame_accel.files import write_bytes_atomically
from flame_accel.io_errors import describe_if_io_error
from flame_accel.json_text import parse_json_text
from flame_accel.observe.console import get_logger
from flame_accel.observe.damaged_records import move_aside, warn_once

METRICS_FILE = "metrics.jsonl"
MOST_UNWRITTEN = 10_000
"""Records that are kept in memory at most while the file cannot be written."""


class _Line(NamedTuple):
    """A line of the file."""

    number: int
    """From 1."""
    text: bytes
    """With its end, if it has one."""
    record: dict[str, float] | None
    """None if the line is damaged."""


class MetricsFile:
    """Appends records to a metrics.jsonl. A full or broken disk ends no run.

    Records that cannot be written are kept in memory and written with the next one that can be.

    Args:
        path: Created by the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: deque[bytes] = deque(maxlen=MOST_UNWRITTEN)

    def append(self, record: Mapping[str, float]) -> None:
        """Appends one line; logs the first of several failures in a row."""
        self._unwritten.append(json.dumps(non_finite_to_strings(record)).encode() + b"\n")
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
        delete_records_after(self.path, step)


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


def read_records(existing_file: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl as numbers; a torn last line and damaged ones are left out."""
    lines = _read_lines(existing_file)
    damaged = [line.number for line in lines if line.record is None and line is not lines[-1]]
    if damaged:
        problem = f"has {len(damaged)} damaged lines, the first is line {damaged[0]}"
        warn_once(existing_file, problem, "they are passed over")
    return [line.record for line in lines if line.record is not None]


def _read_lines(path: Path) -> list[_Line]:
    texts = path.read_bytes().splitlines(keepends=True)
    return [_Line(number, text, _parse_record(text)) for number, text in enumerate(texts, 1)]


def _parse_record(line: bytes) -> dict[str, float] | None:
    """The record of a whole line; None if the line is torn or is no record.

    An object without its last brace is none: the end of a line tells nothing more.
    """
    try:
        stored = parse_json_text(line)
        if not isinstance(stored, dict) or type(stored.get("step")) is not int:
            return None
        return _strings_to_numbers(stored)
    except (ValueError, TypeError, RecursionError):
        return None


def non_finite_to_strings(record: Mapping[str, float]) -> dict[str, float | str]:
    """A record with NaN and infinities, which JSON does not have, as strings."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _strings_to_numbers(stored: Mapping[str, float | str]) -> dict[str, float]:
    """The inverse of `non_finite_to_strings`; raises an error for what is no number."""
    return {
        key: value if isinstance(value, (int, float)) else float(value)
        for key, value in stored.items()
    }


def delete_records_after(path: Path, step: int) -> None:
    """Deletes the records after `step`, and an incomplete last line, from a metrics.jsonl.

    A file with other damage is kept under another name.
    """
    if not path.exists():
        return
    lines = _read_lines(path)
    kept = [line for line in lines if line.record is not None and line.record["step"] <= step]
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
