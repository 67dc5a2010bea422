"""What options there are: name, type, default and choices, read off the dataclasses.

The dataclasses are the only place where an option is declared; flags, files, help and the options
page follow from them. Checking values lives in `values` (one value) and `validation` (all values).
"""

import dataclasses
import functools
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flame_accel.config.root import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Name and type of an option."""

    name: str
    """section.option."""
    kind: type
    """bool, int, float or str: of the value, or of each of several values."""
    default: Any = None
    optional: bool = False
    """Whether None is a value."""
    many: bool = False
    """Whether the value is a tuple."""
    choices: tuple[str, ...] = ()
    """The only values there are; empty when any will do."""

    @property
    def type(self) -> str:
        """The type in words, such as `int`, `list[str]` or `float | None`."""
        core = f"list[{self.kind.__name__}]" if self.many else self.kind.__name__
        return f"{core} | None" if self.optional else core


def _option(name: str, annotation: Any, default: Any) -> Option:
    members = get_args(annotation)
    optional = NoneType in members
    if optional:
        [annotation] = [member for member in members if member is not NoneType]
    origin, members = get_origin(annotation), get_args(annotation)
    many = origin is tuple
    choices = members if origin is Literal else ()
    kind = members[0] if many else str if choices else annotation
    return Option(
        name=name, kind=kind, default=default, optional=optional, many=many, choices=choices
    )


@functools.cache
def sections() -> dict[str, type]:
    """The section classes by name, in the order of the root."""
    return get_type_hints(Config)


@functools.cache
def options() -> dict[str, Option]:
    """Every option by name, in the order of the dataclasses."""
    found = {}
    for section, cls in sections().items():
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            name = f"{section}.{field.name}"
            found[name] = _option(name, hints[field.name], field.default)
    return found


def value_of(config: Config, name: str) -> Any:
    """The value of an option by name."""
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)
