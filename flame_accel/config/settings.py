"""What one source (the flags, a run file) says, before sources are merged."""

from dataclasses import dataclass, field
from typing import Any

from flame_accel.config.dialect import DIALECT
from flame_accel.config.errors import Problem
from flame_accel.config.schema import Option, options
from flame_accel.config.suggest import nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A value for an option, and where the user gave it."""

    name: str
    value: Any
    where: str
    """The flag, or the file, line and option."""
    shown: str
    """The value as the user knows it, whatever name it is translated to."""


@dataclass(kw_only=True, slots=True)
class Source:
    """What one source says, in its own order."""

    settings: list[Setting] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unclear: set[str] = field(default_factory=set)
    """Options that the source meant to set, but that came out wrong: no second problem for them."""
    readable: bool = True
    """False when nothing is known of what the source says."""


def option_named(name: str) -> Option | None:
    """The option, ours or of flame's dialect, or None."""
    return options().get(name) or DIALECT.get(name)


def suggest_option(
    source: Source, name: str, *, prefix: str = "", extra: tuple[str, ...] = ()
) -> str:
    """The remedy for an unknown option; what was probably meant is noted as unclear."""
    best = nearest(name, [*options(), *DIALECT, *extra])
    if best is None:
        return "python -m flame_accel.config -h lists every option."
    source.unclear.add(best)
    return f"Did you mean {prefix}{best}?"
