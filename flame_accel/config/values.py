"""One value at a time: from the text of a flag, from a run file, and back to text.

A value of the wrong type raises `ValueError` with the rule that it breaks. Ranges, and options that
depend on each other, live in `validation`.
"""

import json
from typing import Any

from flame_accel.config.schema import Option

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_REMEDIES = {
    bool: "Write true or false.",
    int: "Write a whole number, such as 8.",
    float: "Write a number, such as 0.1 or 1e-4.",
    str: "Write it in quotes.",
}


def from_text(option: Option, text: str) -> Any:
    """The value that the text of a flag means; empty text and `none` mean None where it is one."""
    if option.optional and _is_none(text):
        return None
    if option.many:
        return tuple(_member(option, part.strip()) for part in text.split(",") if part.strip())
    return _member(option, text)


def _is_none(text: str) -> bool:
    return text.lower() in ("", "none")


def _member(option: Option, text: str) -> Any:
    if option.kind is str:
        return _checked_text(option, text)
    if option.kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(_rule(option))
        return text.lower() == "true"
    try:
        return option.kind(text)
    except ValueError:
        raise ValueError(_rule(option)) from None


def from_file(option: Option, value: Any) -> Any:
    """The value that a run file's value, as its parser read it, means."""
    if option.optional and (value is None or (isinstance(value, str) and _is_none(value))):
        return None
    if not option.many:
        return _typed(option, value)
    if isinstance(value, str):
        return from_text(option, value)
    if not isinstance(value, list):
        raise ValueError(_rule(option))
    return tuple(_typed(option, member) for member in value)


def _typed(option: Option, value: Any) -> Any:
    if option.kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError("is too large for a number") from None
    if type(value) is not option.kind:
        raise ValueError(_rule(option))
    return _checked_text(option, value) if option.kind is str else value


def _checked_text(option: Option, text: str) -> str:
    if option.choices and text not in option.choices:
        raise ValueError(_rule(option))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    return text


def _rule(option: Option) -> str:
    if option.choices:
        return f"must be one of {', '.join(option.choices)}"
    name = _NAMES[option.kind]
    return f"must be a list, each {name}" if option.many else f"must be {name}"


def remedy(option: Option) -> str:
    """What to do about a value of the wrong type."""
    if option.choices:
        return f"Choose one of {', '.join(option.choices)}."
    return _REMEDIES[option.kind]


def show(value: Any) -> str:
    """The value as messages show it: on one line, at most some 80 characters, in plain ASCII."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    text = json.dumps(value[:100]) if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
