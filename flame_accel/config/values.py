"""One value at a time: from the text of a flag, from a run file, and back to text.

A value of the wrong type raises `InvalidValue`. Ranges, and options that depend on each other, are
checked in `validation`.
"""

import json
import math
from typing import Any

from flame_accel.config.paths import PathKind, expand_comma_separated_paths, expand_path
from flame_accel.config.schema import Option
from flame_accel.config.secrets import mask_secrets
from flame_accel.config.suggestions import nearest_text

_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_TYPE_REMEDIES = {
    bool: "Write true or false.",
    int: "Write a whole number, such as 8.",
    float: "Write a number, such as 0.1 or 1e-4.",
    str: "Write it in quotes.",
}


class InvalidValue(Exception):
    """A value that an option cannot take.

    Args:
        rule: The rule that it breaks.
        remedy: What to do about it.
    """

    def __init__(self, rule: str, remedy: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.remedy = remedy


def parse_text_value(option: Option, text: str) -> Any:
    """The value that the text of a flag stands for; `none` and empty text are None if allowed.

    Raises:
        InvalidValue: The text is not of the option's type.
    """
    if option.optional and _means_none(text):
        return None
    if option.many:
        return tuple(
            _parse_single_value(option, part.strip()) for part in text.split(",") if part.strip()
        )
    return _parse_single_value(option, text)


def convert_file_value(option: Option, value: object) -> Any:
    """The value of the option for a value that a run file's parser returned.

    Raises:
        InvalidValue: The value is not of the option's type.
    """
    if option.optional and (value is None or (isinstance(value, str) and _means_none(value))):
        return None
    if not option.many:
        return _convert_single_value(option, value)
    if isinstance(value, str):
        return parse_text_value(option, value)
    if not isinstance(value, list):
        raise _wrong_type_or_choice_error(option, value)
    return tuple(_convert_single_value(option, member) for member in value)


def _means_none(text: str) -> bool:
    return text.lower() in ("", "none")


def _parse_single_value(option: Option, text: str) -> Any:
    """One value, or one member of a list, from text."""
    if option.kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    else:
        try:
            value = option.kind(text)
        except ValueError:
            raise _wrong_type_or_choice_error(option, text) from None
    return _convert_single_value(option, value)


def _convert_single_value(option: Option, value: object) -> Any:
    """The value if it is of the type; whole numbers become floats and paths are expanded."""
    if type(value) is int and abs(value) >= 2**63:
        raise InvalidValue("must fit into 64 bits", _TYPE_REMEDIES[int])
    if option.kind is float and type(value) is int:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue("must be finite", _TYPE_REMEDIES[float])
    if type(value) is not option.kind or (option.choices and value not in option.choices):
        raise _wrong_type_or_choice_error(option, value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidValue("is not valid UTF-8", "Write it in UTF-8.") from None
        return _expand_paths(option, value)
    return value


def _expand_paths(option: Option, text: str) -> str:
    if option.path is None:
        return text
    try:
        return (
            expand_path(text) if option.path is PathKind.ONE else expand_comma_separated_paths(text)
        )
    except ValueError as error:
        raise InvalidValue(str(error), "Set it, or write the path without it.") from None


def _wrong_type_or_choice_error(option: Option, value: object) -> InvalidValue:
    if option.choices:
        rule = f"must be one of {', '.join(option.choices)}"
        best = nearest_text(value, option.choices) if isinstance(value, str) else None
        remedy = f"Did you mean {best}?" if best else f"Choose one of {', '.join(option.choices)}."
        return InvalidValue(rule, remedy)
    name = _TYPE_NAMES[option.kind]
    rule = f"must be a list, each {name}" if option.many else f"must be {name}"
    return InvalidValue(rule, _TYPE_REMEDIES[option.kind])


def format_short_masked_value(value: object) -> str:
    """The value as messages show it: short, on one line, in plain ASCII, without secrets."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    # these may be arbitrarily long, and no option has such a value
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a huge number"
    if isinstance(value, str):
        # before it is shortened: half a token is not recognised
        value = mask_secrets(value)
    if isinstance(value, str) and len(value) > 150:
        # both ends of a path tell which one it is
        value = f"{value[:72]}...{value[-72:]}"
    text = json.dumps(value) if isinstance(value, str) else ascii(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
