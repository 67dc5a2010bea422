"""Options that are paths: how they are declared, and `~` and `$VARIABLE` in them.

A field whose type is `PathText` or `PathList` is expanded wherever its value comes from. Whether a
path exists is checked in `input_checks`.
"""

import os
import re
from enum import Enum
from typing import Annotated


class PathKind(Enum):
    """How many paths the text of an option holds."""

    ONE = "one"
    COMMA_SEPARATED = "comma-separated"


PathText = Annotated[str, PathKind.ONE]
"""A path, or a name on the Hub where the option takes one."""
PathList = Annotated[str, PathKind.COMMA_SEPARATED]
"""One path or several in one text, separated by commas."""

_PREFIXES = (".", "/", "~")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".txt", ".py", ".gz", ".zst")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand_path(text: str) -> str:
    """Replaces a leading `~` or `~user`, and each `$VARIABLE` or `${VARIABLE}`, by its value.

    An existing path is returned as it is.

    Raises:
        ValueError: A variable is not set, or there is no such user; the message is the broken rule.
    """
    if not (text.startswith("~") or "$" in text) or os.path.exists(text):
        return text

    def variable_value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]

    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"the home folder of {expanded.partition('/')[0]} is not known")
    return _VARIABLE.sub(variable_value, expanded)


def expand_comma_separated_paths(text: str) -> str:
    """`expand_path` for each of several paths that are separated by commas."""
    if os.path.exists(text):
        return text
    parts = []
    for part in text.split(","):
        path = part.strip()
        parts.append(part.replace(path, expand_path(path)) if path else part)
    return ",".join(parts)


def looks_like_path(value: str) -> bool:
    """Whether a text can only be a path: a name on the Hub is `owner/name` or one word."""
    if "://" in value:
        return False
    return (
        value.startswith(_PREFIXES) or value.endswith(_SUFFIXES) or value.rstrip("/").count("/") > 1
    )
