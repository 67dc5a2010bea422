"""Records of a run that cannot be read: a torn write, a flipped bit, another program's work.

A restart keeps what is good of them. What it passes over is said once, and the damaged file is kept
under another name once the run writes a new one. What the records mean is up to their owners.
"""

import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

from flame_accel.files import rename_and_sync
from flame_accel.io_errors import describe_if_io_error
from flame_accel.json_text import parse_json_text
from flame_accel.observe.console import get_logger

MOST_BYTES = 1 << 26
"""A larger file is none of the small ones that describe a run; it would only fill the memory."""


class DamagedRecordError(ValueError):
    """A record cannot be read; `str()` says why, as part of a sentence."""


def read_record_text(path: Path) -> str:
    """The text of a small file that exists.

    Raises:
        DamagedRecordError: It cannot be read, is too large, or is not UTF-8.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DamagedRecordError(f"is larger than {MOST_BYTES >> 20} MiB")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DamagedRecordError(f"cannot be read: {describe_if_io_error(error)}") from None
    except UnicodeDecodeError as error:
        raise DamagedRecordError(f"is not text in UTF-8 (byte {error.start})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file that exists.

    Raises:
        DamagedRecordError: It cannot be read, or holds anything else.
    """
    try:
        content = parse_json_text(read_record_text(path))
    except json.JSONDecodeError as error:
        raise DamagedRecordError(f"is not JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(content, dict):
        raise DamagedRecordError("is not a JSON object")
    return content


@functools.lru_cache(maxsize=1000)
def warn_once(path: Path, problem: str, consequence: str) -> None:
    """Says that a record is damaged, and what follows from it; once for each of them."""
    get_logger().warning("%s %s: %s", path, problem, consequence)


def move_aside(path: Path) -> Path:
    """Renames a damaged record to the first free `NAME.damaged-N`, and says so."""
    numbered = (path.with_name(f"{path.name}.damaged-{n}") for n in itertools.count())
    aside = next(name for name in numbered if not os.path.lexists(name))
    rename_and_sync(path, aside)
    get_logger().warning("the damaged %s is kept as %s", path, aside.name)
    return aside
