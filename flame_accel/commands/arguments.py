"""Arguments that several commands share: options of a run, and types of argparse."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from flame_accel.config import UsageError
from flame_accel.config.schema import options
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
        type=partial(parse_run_option, "model.custom"),
        help="package or file that registers the architecture; may be repeated",
    )


def parse_run_option(name: str, text: str, *, required: bool = False) -> Any:
    """The value that a run would read from the text of an option, with paths expanded.

    Raises:
        UsageError: The text is not of the option's type, names a variable that is not set, or
            stands for no value where one is required.
    """
    where = f"--{name} {text}"
    try:
        value = parse_text_value(options()[name], text)
    except InvalidValue as error:
        raise UsageError(error.rule, where=where, remedy=error.remedy) from error
    if required and value is None:
        raise UsageError("is required", where=where, remedy="Give it a value.")
    return value


def argparse_integer_at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not below `minimum`."""

    def parse_integer(word: str) -> int:
        if not word.isdecimal() or int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number >= {minimum}")
        return int(word)

    return parse_integer
