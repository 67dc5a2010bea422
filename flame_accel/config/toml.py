"""A configuration as a TOML run file that, read again, gives an equal object."""

import json
from typing import Any

from flame_accel.config.root import Config
from flame_accel.config.schema import options, value_of


def to_toml(config: Config) -> str:
    """Every option in TOML; `none` stands for None, which TOML does not have."""
    lines: list[str] = []
    for name in options():
        section, _, key = name.partition(".")
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        lines.append(f"{key} = {_toml(value_of(config, name))}")
    return "\n".join(lines[1:]) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # json escapes all that toml wants escaped, but for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
