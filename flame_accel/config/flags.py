"""The command line: `--section.option value`, in every form that is accepted.

Booleans are `--a.b`, `--a.no_b`, `--a.b=true|false` and `--a.b true|false`; a dash in a name counts
as an underscore. All flags are read, however many of them are wrong.
"""

import os
from collections.abc import Sequence

from flame_accel.config.errors import Problem
from flame_accel.config.file_formats import PARSERS
from flame_accel.config.flame_aliases import FLAME_OPTIONS
from flame_accel.config.paths import PathKind
from flame_accel.config.schema import Option, options
from flame_accel.config.settings import (
    OptionSource,
    Setting,
    find_option,
    suggest_option_and_mark_misread,
)
from flame_accel.config.values import InvalidValue, format_value, parse_text_value

_UNKNOWN = "there is no such option"
_CONFIG_FILE = "job.config_file"
# what other programs call a run file
_CONFIG_FILE_NAMES = ("config", "config_file", "config_path", "cfg")


def collect_flag_settings_and_problems(argv: Sequence[str]) -> OptionSource:
    """The settings and problems of a command line."""
    source = OptionSource()
    position = 0
    while position < len(argv):
        flag, end = argv[position], position + 1
        while end < len(argv) and not argv[end].startswith("--"):
            end += 1
        _read_flag_into_source(source, flag, argv[position + 1 : end])
        position = end
    return source


def _read_flag_into_source(
    source: OptionSource, flag: str, arguments_until_next_flag: Sequence[str]
) -> None:
    """Reads one flag and the arguments up to the next one."""
    written, equals, value = flag.partition("=")
    name = written.removeprefix("--").replace("-", "_")
    option, negated = find_option(name), False
    if option is None:
        option = find_option(name.replace(".no_", ".", 1))
        negated = option is not None
    if not flag.startswith("--"):
        _add_stray_argument_problems(source, [flag, *arguments_until_next_flag])
    elif name in _CONFIG_FILE_NAMES:
        _add_foreign_config_file_flag_problem(
            source, written, value or " ".join(arguments_until_next_flag[:1])
        )
    elif option is None or (negated and option.kind is not bool):
        _add_unknown_flag_problem(source, written, name)
    elif negated:
        if equals:
            remedy = f"Write {written}, or --{option.name}={value}."
            _add_wrong_value_problem(source, option, written, value, "takes no value", remedy)
        else:
            setting = Setting(name=option.name, value=False, where=written, shown="false")
            source.settings.append(setting)
        _add_stray_argument_problems(source, arguments_until_next_flag)
    else:
        values = [value] if equals else _leading_option_values(option, arguments_until_next_flag)
        # a pattern that the shell expanded leaves data files behind its first match
        rest = arguments_until_next_flag if equals else arguments_until_next_flag[len(values) :]
        is_data = option.path is PathKind.COMMA_SEPARATED
        _add_stray_argument_problems(source, rest, may_be_data_files=is_data)
        _add_flag_setting_or_problem(source, option, written, values)


def _leading_option_values(
    option: Option, arguments_until_next_flag: Sequence[str]
) -> Sequence[str]:
    """The leading arguments that are values of the option."""
    if option.many:
        return arguments_until_next_flag
    if option.kind is bool and (
        not arguments_until_next_flag
        or arguments_until_next_flag[0].lower() not in ("true", "false")
    ):
        return []
    return arguments_until_next_flag[:1]


def _add_flag_setting_or_problem(
    source: OptionSource, option: Option, flag: str, values: Sequence[str]
) -> None:
    """Adds the setting of a flag, or the problem with its value, to the source."""
    if not values and option.kind is not bool:
        remedy = f"Write {flag} VALUE, or {flag}=VALUE if the value starts with --."
        _add_wrong_value_problem(source, option, flag, None, "needs a value", remedy)
        return
    text = ",".join(values) if values else "true"
    try:
        value = parse_text_value(option, text)
    except InvalidValue as error:
        _add_wrong_value_problem(source, option, flag, text, error.rule, error.remedy)
    else:
        setting = Setting(name=option.name, value=value, where=flag, shown=format_value(value))
        source.settings.append(setting)


def _add_wrong_value_problem(
    source: OptionSource, option: Option, flag: str, text: str | None, rule: str, remedy: str
) -> None:
    source.misread.add(option.name)
    value = None if text is None else format_value(text)
    source.problems.append(Problem(where=flag, value=value, rule=rule, remedy=remedy))


def _add_unknown_flag_problem(source: OptionSource, flag: str, name: str) -> None:
    negations = tuple(
        option.name.replace(".", ".no_", 1)
        for option in (*options().values(), *FLAME_OPTIONS.values())
        if option.kind is bool
    )
    remedy = suggest_option_and_mark_misread(source, name, prefix="--", extra_names=negations)
    problem = Problem(where=flag, value=None, rule=_UNKNOWN, remedy=remedy)
    source.problems.append(problem)


def _add_foreign_config_file_flag_problem(source: OptionSource, flag: str, value: str) -> None:
    """Reports another program's flag for a run file; what the file would set is not known."""
    source.complete = False
    remedy = (
        f"Did you mean --{_CONFIG_FILE} {value or 'FILE'} (a run file), or --model.config (the "
        "config of the model)?"
    )
    source.problems.append(Problem(where=flag, value=None, rule=_UNKNOWN, remedy=remedy))


def _add_stray_argument_problems(
    source: OptionSource, arguments: Sequence[str], *, may_be_data_files: bool = False
) -> None:
    """Reports arguments that no option takes; a run file among them gets the flag for it."""
    for text in arguments:
        remedy = (
            "Write options as --section.option value; quote a value that contains spaces or a "
            "pattern."
        )
        if not may_be_data_files and (
            text.lower().endswith(tuple(PARSERS)) or os.path.isfile(text)
        ):
            source.complete = False
            remedy = f"Did you mean --{_CONFIG_FILE} {text}? {remedy}"
        where = format_value(text)
        problem = Problem(where=where, value=None, rule="belongs to no option", remedy=remedy)
        source.problems.append(problem)
