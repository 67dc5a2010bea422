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
from flame_accel.config.settings import OptionSource, Setting, find_option, suggest_option
from flame_accel.config.values import InvalidValue, format_value, parse_text_value

_UNKNOWN = "there is no such option"
_CONFIG_FILE = "job.config_file"
# what other programs call a run file
_CONFIG_FILE_NAMES = ("config", "config_file", "config_path", "cfg")


def read_flags(argv: Sequence[str]) -> OptionSource:
    """The settings and problems of a command line."""
    source = OptionSource()
    position = 0
    while position < len(argv):
        flag, end = argv[position], position + 1
        while end < len(argv) and not argv[end].startswith("--"):
            end += 1
        _read_flag(source, flag, argv[position + 1 : end])
        position = end
    return source


def _read_flag(source: OptionSource, flag: str, following: Sequence[str]) -> None:
    """Reads one flag and the arguments up to the next one."""
    written, equals, value = flag.partition("=")
    name = written.removeprefix("--").replace("-", "_")
    option, negated = find_option(name), False
    if option is None:
        option = find_option(name.replace(".no_", ".", 1))
        negated = option is not None
    if not flag.startswith("--"):
        _report_stray_arguments(source, [flag, *following])
    elif name in _CONFIG_FILE_NAMES:
        _report_missing_config_file(source, written, value or " ".join(following[:1]))
    elif option is None or (negated and option.kind is not bool):
        _report_unknown_flag(source, written, name)
    elif negated:
        if equals:
            remedy = f"Write {written}, or --{option.name}={value}."
            _report_wrong_value(source, option, written, value, "takes no value", remedy)
        else:
            setting = Setting(name=option.name, value=False, where=written, shown="false")
            source.settings.append(setting)
        _report_stray_arguments(source, following)
    else:
        values = [value] if equals else _take_values(option, following)
        # a pattern that the shell expanded leaves data files behind its first match
        rest = following if equals else following[len(values) :]
        is_data = option.path is PathKind.COMMA_SEPARATED
        _report_stray_arguments(source, rest, may_be_data=is_data)
        _parse_flag_into(source, option, written, values)


def _take_values(option: Option, following: Sequence[str]) -> Sequence[str]:
    """The leading arguments that are values of the option."""
    if option.many:
        return following
    if option.kind is bool and (not following or following[0].lower() not in ("true", "false")):
        return []
    return following[:1]


def _parse_flag_into(
    source: OptionSource, option: Option, flag: str, values: Sequence[str]
) -> None:
    """Adds the setting of a flag, or the problem with its value, to the source."""
    if not values and option.kind is not bool:
        remedy = f"Write {flag} VALUE, or {flag}=VALUE if the value starts with --."
        _report_wrong_value(source, option, flag, None, "needs a value", remedy)
        return
    text = ",".join(values) if values else "true"
    try:
        value = parse_text_value(option, text)
    except InvalidValue as error:
        _report_wrong_value(source, option, flag, text, error.rule, error.remedy)
    else:
        setting = Setting(name=option.name, value=value, where=flag, shown=format_value(value))
        source.settings.append(setting)


def _report_wrong_value(
    source: OptionSource, option: Option, flag: str, text: str | None, rule: str, remedy: str
) -> None:
    source.misread.add(option.name)
    value = None if text is None else format_value(text)
    source.problems.append(Problem(where=flag, value=value, rule=rule, remedy=remedy))


def _report_unknown_flag(source: OptionSource, flag: str, name: str) -> None:
    negations = tuple(
        option.name.replace(".", ".no_", 1)
        for option in (*options().values(), *FLAME_OPTIONS.values())
        if option.kind is bool
    )
    remedy = suggest_option(source, name, prefix="--", extra=negations)
    problem = Problem(where=flag, value=None, rule=_UNKNOWN, remedy=remedy)
    source.problems.append(problem)


def _report_missing_config_file(source: OptionSource, flag: str, value: str) -> None:
    """Reports another program's flag for a run file; what the file would set is not known."""
    source.complete = False
    remedy = (
        f"Did you mean --{_CONFIG_FILE} {value or 'FILE'} (a run file), or --model.config (the "
        "config of the model)?"
    )
    source.problems.append(Problem(where=flag, value=None, rule=_UNKNOWN, remedy=remedy))


def _report_stray_arguments(
    source: OptionSource, arguments: Sequence[str], *, may_be_data: bool = False
) -> None:
    """Reports arguments that no option takes; a run file among them gets the flag for it."""
    for text in arguments:
        remedy = (
            "Write options as --section.option value; quote a value that contains spaces or a "
            "pattern."
        )
        if not may_be_data and (text.lower().endswith(tuple(PARSERS)) or os.path.isfile(text)):
            source.complete = False
            remedy = f"Did you mean --{_CONFIG_FILE} {text}? {remedy}"
        where = format_value(text)
        problem = Problem(where=where, value=None, rule="belongs to no option", remedy=remedy)
        source.problems.append(problem)
