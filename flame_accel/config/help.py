"""The help: every option with its default and meaning, drawn by tyro from the same declarations."""

import contextlib
import dataclasses
from typing import Annotated, Any, get_type_hints

from flame_accel.config.describe import describe_options
from flame_accel.config.schema import sections
from flame_accel.config.values import show

_DESCRIPTION = (
    "Train a Flash Linear Attention model. Values come from the defaults, then from the run file "
    "(--job.config_file), then from flags; later ones win. Booleans take --a.b, --a.no_b and "
    "--a.b=true|false; none stands for no value. Names of flame's newer dialect (lr_scheduler.*, "
    "optimizer.implementation, ...) are accepted too."
)


def print_help() -> None:
    """Prints the help on stdout."""
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(
            _documented_config(),
            prog="train.py",
            description=_DESCRIPTION,
            args=["--help"],
            use_underscores=True,
        )


def _documented_config() -> type:
    """The root class, with each option's help in its type, where tyro leaves its lines alone."""
    import tyro

    described = {option.name: option for option in describe_options()}
    documented: list[tuple[str, Any, Any]] = []
    for section, cls in sections().items():
        members: list[tuple[str, Any, Any]] = []
        for name, hint in get_type_hints(cls).items():
            option = described[f"{section}.{name}"]
            hint_text = f"(default: {_text(option.default)})"
            limits = f" Refused: {option.limits}." if option.limits else ""
            arg = tyro.conf.arg(help=f"{option.help}{limits}", help_behavior_hint=hint_text)
            field = dataclasses.field(default=option.default)
            members.append((name, Annotated[hint, arg], field))
        made = dataclasses.make_dataclass(section, members, namespace={"__doc__": cls.__doc__})
        documented.append((section, made, dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass("Config", documented)


def _text(default: Any) -> str:
    """A default as one would write it after a flag; nothing is shown as such."""
    if default in ("", ()):
        return "empty"
    return default if isinstance(default, str) else show(default)
