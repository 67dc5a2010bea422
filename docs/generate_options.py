"""Writes docs/options.md: the options page, from the declarations that flags and help come from.

    python -m docs.generate_options

Needs the standard library and flame_accel only. A test holds that the page is up to date. The test
of an option is the one marked `covers_option("section.option")`.
"""

import ast
import inspect
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from flame_accel.config import OptionDescription, describe_options
from flame_accel.config.dialect import ALIASES, DECAY_RATIO, DECAY_TYPE, FOREIGN
from flame_accel.config.schema import sections
from flame_accel.config.values import show

PAGE = Path(__file__).with_name("options.md")
TESTS = Path(__file__).resolve().parents[1] / "tests"
HEAD = """\
# Options

Made by `python -m docs.generate_options`; `bash train.sh -h` prints the same.

An option is `--section.option value` on the command line and `option = value` under `[section]` in
a run file (`--job.config_file`: TOML, YAML or JSON). Later wins: defaults, then the run file, then
flags. Booleans take `--a.b`, `--a.no_b` and `--a.b=true|false`; `none` stands for no value; the
members of a list are separated by commas. What is marked as refused ends a run before it starts,
with the reason. The last column names the test, in tests/, that looks at what the option does.
"""
DIALECT = f"""\
## Names of flame's newer options

These are understood as well, in run files and as flags. Two names of one option with different
values in one place are an error.

| name | here |
|---|---|
{{aliases}}
| `{DECAY_RATIO.name}` | `optimizer.decay_ratio`, and `optimizer.scheduler = wsd` |
| `{DECAY_TYPE.name}` | `optimizer.decay_type` with a ratio, else `optimizer.scheduler` |

These are known and have no counterpart; a value other than the one that asks for nothing is refused
with the reason:
{{foreign}}.
"""


def read_tests() -> dict[str, str]:
    """The test of each option, as `path/test_file.py::test_name` relative to tests/.

    Raises:
        ValueError: An option is claimed by two tests.
    """
    tests: dict[str, str] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for function in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef):
                name = f"{file.relative_to(TESTS).as_posix()}::{function.name}"
                for option in _covered_options(function):
                    if option in tests:
                        raise ValueError(f"{option} is covered by {tests[option]} and {name}")
                    tests[option] = name
    return tests


def _covered_options(function: ast.FunctionDef) -> Iterator[str]:
    """The arguments of a function's `covers_option` marks."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(
            ".covers_option"
        ):
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def describe_option(option: OptionDescription, test: str) -> str:
    """One row of a table."""
    kind = " or ".join(f"`{choice}`" for choice in option.choices) or f"`{option.type}`"
    default = "empty" if option.default in ("", ()) else f"`{as_flag(option)}`"
    limits = f" *Refused: {option.limits}.*" if option.limits else ""
    cells = (f"`{option.name}`", kind, default, option.help + limits, f"`{test}`")
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def as_flag(option: OptionDescription) -> str:
    """A default as one would write it after a flag."""
    return option.default if isinstance(option.default, str) else show(option.default)


def describe_all() -> str:
    """The whole page."""
    parts, tests = [HEAD], read_tests()
    named = groupby(describe_options(), key=lambda option: option.name.partition(".")[0])
    for section, members in named:
        rows = "\n".join(describe_option(option, tests[option.name]) for option in members)
        summary = inspect.cleandoc(sections()[section].__doc__ or "")
        head = "| option | values | default | meaning | test |\n|---|---|---|---|---|"
        parts.append(f"## {section}\n\n{summary}\n\n{head}\n{rows}\n")
    aliases = "\n".join(f"| `{name}` | `{alias.target}` |" for name, alias in ALIASES.items())
    foreign = ", ".join(f"`{name}`" for name in FOREIGN)
    parts.append(DIALECT.format(aliases=aliases, foreign=foreign))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(describe_all(), encoding="utf-8")
