"""Arguments that several commands share: options of a run, and types of argparse."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from flame_accel.config import UsageError
from flame_accel.config.input_checks import find_missing_path
from flame_accel.config.schema import options
from flame_accel.config.validation import find_broken_range_or_format_rule
from flame_accel.config.values import InvalidValue, parse_text_value


def add_run_options(
    parser: argparse.ArgumentParser, *names: str, **add_argument_overrides: Any
) -> None:
    """Declares options of a run, with the values, choices and defaults that they have there.

    The value is stored under the name of the option without its section.

    Args:
        parser: Parser of the command.
        names: section.option.
        add_argument_overrides: Arguments of `ArgumentParser.add_argument` that are others than in
            a run.
    """
    for name in names:
        option = options()[name]
        declared: dict[str, Any] = {"default": option.default, "help": "same as in training"}
        if option.kind is bool:
            declared |= {"action": "store_true"}
        elif option.choices:
            declared |= {"choices": option.choices}
        else:
            required = bool(add_argument_overrides.get("required"))
            declared |= {"type": partial(parse_run_option, name, required=required)}
        declared |= {"dest": name.partition(".")[2], **add_argument_overrides}
        parser.add_argument(f"--{name}", **declared)


def add_custom_modules_argument(parser: argparse.ArgumentParser) -> None:
    """Declares --custom: model.custom of a run, which may be repeated."""
    parser.add_argument(
        "--custom",
        action="extend",
        default=[],
        type=_parse_custom_modules_and_check_paths_exist,
        help="package or file that registers the architecture; may be repeated",
    )


def _parse_custom_modules_and_check_paths_exist(text: str) -> tuple[str, ...]:
    modules: tuple[str, ...] = parse_run_option("model.custom", text, where="--custom")
    for path in modules:
        missing = find_missing_path("model.custom", path)
        if missing is not None:
            raise UsageError(missing.rule, where=f"--custom {text}", remedy=missing.remedy)
    return modules


def parse_run_option(
    name: str, text: str, *, required: bool = False, where: str | None = None
) -> Any:
    """The value that a run would read from the text of an option, with paths expanded.

    Args:
        name: section.option.
        text: What the user wrote.
        required: Whether there must be a value.
        where: The argument of the command; None is `--` with the name of the option.

    Raises:
        UsageError: The text is not of the option's type, breaks its rule, names a variable that is
            not set, or stands for no value where one is required.
    """
    where = f"{where or f'--{name}'} {text}".rstrip()
    try:
        value = parse_text_value(options()[name], text)
    except InvalidValue as error:
        raise UsageError(error.rule, where=where, remedy=error.remedy) from error
    is_missing = required and value is None
    rule = find_broken_range_or_format_rule(name, text if is_missing else value)
    if is_missing and rule is None:
        raise UsageError("is required", where=where, remedy="Give it a value.")
    if rule is not None:
        raise UsageError(rule.rule, where=where, remedy="Choose such a value.")
    return value


def argparse_integer_at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not below `minimum`."""

    def parse_integer(word: str) -> int:
        if not word.isdecimal() or int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number >= {minimum}")
        return int(word)

    return parse_integer
