"""One value at a time: from the text of a flag, from a run file, and back to text.

A value of the wrong type raises `ValueError` with the rule that it breaks. Ranges, and options that
depend on each other, live in `validation`.
"""

import json
from typing import Any

from flame_accel.config.schema import Option
from flame_accel.config.suggest import nearest_choice

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
    if option.kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    else:
        try:
            value = option.kind(text)
        except ValueError:
            raise ValueError(_rule(option)) from None
    return _checked(option, value)


def from_file(option: Option, value: Any) -> Any:
    """The value that a run file's value, as its parser read it, means."""
    if option.optional and (value is None or (isinstance(value, str) and _is_none(value))):
        return None
    if not option.many:
        return _checked(option, value)
    if isinstance(value, str):
        return from_text(option, value)
    if not isinstance(value, list):
        raise ValueError(_rule(option))
    return tuple(_checked(option, member) for member in value)


def _checked(option: Option, value: Any) -> Any:
    """One value, if it is of the type; a whole number is a number too."""
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError("must fit into 64 bits")
    if option.kind is float and type(value) is int:
        return float(value)
    if type(value) is not option.kind or (option.choices and value not in option.choices):
        raise ValueError(_rule(option))
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    return value


def _rule(option: Option) -> str:
    if option.choices:
        return f"must be one of {', '.join(option.choices)}"
    name = _NAMES[option.kind]
    return f"must be a list, each {name}" if option.many else f"must be {name}"


def remedy(option: Option, value: Any) -> str:
    """What to do about a value of the wrong type."""
    if option.choices:
        best = nearest_choice(value, option.choices) if isinstance(value, str) else None
        return f"Did you mean {best}?" if best else f"Choose one of {', '.join(option.choices)}."
    return _REMEDIES[option.kind]


def show(value: Any) -> str:
    """The value as messages show it: short, on one line, in plain ASCII."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    # what is in them may be long without end, and no option has such a value
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a huge number"
    if isinstance(value, str) and len(value) > 150:
        # of a path, both ends tell which it is
        value = f"{value[:72]}...{value[-72:]}"
    text = json.dumps(value) if isinstance(value, str) else ascii(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
