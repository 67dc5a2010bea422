"""Options for people: what each is for, for the help and the options page."""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from flame_accel.config.availability import REFUSALS
from flame_accel.config.schema import options, sections


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionDescription:
    """An option for people."""

    name: str
    """section.option."""
    type: str
    """In words, such as `int`, `list[str]` or `float | None`."""
    default: Any
    choices: tuple[str, ...]
    """The only values there are; empty when any will do."""
    help: str
    """The docstring under the field, on one line."""
    limits: str
    """What of it is refused, and why; empty when nothing is."""


def describe_options() -> list[OptionDescription]:
    """Every option, in the order of the dataclasses."""
    helps = {
        f"{section}.{field}": text
        for section, cls in sections().items()
        for field, text in _docstrings(cls).items()
    }
    return [
        OptionDescription(
            name=name,
            type=option.type,
            default=option.default,
            choices=option.choices,
            help=helps[name],
            limits=REFUSALS[name].reason if name in REFUSALS else "",
        )
        for name, option in options().items()
    ]


def _docstrings(cls: type) -> dict[str, str]:
    """The string under each field of a class, as one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            found[statement.target.id] = " ".join(str(below.value.value).split())
    return found
