"""The command line: `--section.option value`, in every form that is accepted.

Booleans are `--a.b`, `--a.no_b`, `--a.b=true|false` and `--a.b true|false`; a dash in a name counts
as an underscore. All flags are read, however many of them are wrong.
"""

import os
from collections.abc import Sequence

from flame_accel.config.file_formats import PARSERS
from flame_accel.config.flame_aliases import FLAME_OPTIONS
from flame_accel.config.paths import PathKind
from flame_accel.config.schema import Option, options
from flame_accel.config.settings import OptionSource, find_own_or_flame_option
from flame_accel.config.values import InvalidValue, format_short_masked_value, parse_text_value

_UNKNOWN = "there is no such option"
_CONFIG_FILE = "job.config_file"
# what other programs call a run file
_CONFIG_FILE_NAMES = ("config", "config_file", "config_path", "cfg")


def read_flags_and_problems(argv: Sequence[str]) -> OptionSource:
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
    option, negated = find_own_or_flame_option(name), False
    if option is None:
        option = find_own_or_flame_option(name.replace(".no_", ".", 1))
        negated = option is not None
    if not flag.startswith("--"):
        _add_stray_argument_problems(source, [flag, *arguments_until_next_flag])
    elif name in _CONFIG_FILE_NAMES:
        # what the file would set is not known
        source.complete = False
        file = value or " ".join(arguments_until_next_flag[:1]) or "FILE"
        remedy = (
            f"Did you mean --{_CONFIG_FILE} {file} (a run file), or --model.config (the config of "
            "the model)?"
        )
        source.add_problem(written, _UNKNOWN, remedy)
    elif option is None or (negated and option.kind is not bool):
        negations = tuple(
            option.name.replace(".", ".no_", 1)
            for option in (*options().values(), *FLAME_OPTIONS.values())
            if option.kind is bool
        )
        remedy = source.suggest_and_mark_misread(name, prefix="--", other_names=negations)
        source.add_problem(written, _UNKNOWN, remedy)
    elif negated:
        if equals:
            remedy = f"Write {written}, or --{option.name}={value}."
            shown = format_short_masked_value(value)
            source.add_wrong_value_problem(
                option.name, written, "takes no value", remedy, value=shown
            )
        else:
            source.add_setting(option.name, False, written)
        _add_stray_argument_problems(source, arguments_until_next_flag)
    else:
        values = [value] if equals else _leading_option_values(option, arguments_until_next_flag)
        # a pattern that the shell expanded leaves data files behind its first match
        rest = arguments_until_next_flag if equals else arguments_until_next_flag[len(values) :]
        may_be_run_file = option.path is not PathKind.COMMA_SEPARATED
        _add_stray_argument_problems(source, rest, may_be_run_file=may_be_run_file)
        _add_flag_setting_or_problem(source, option, written, values)


def _leading_option_values(
    option: Option, arguments_until_next_flag: Sequence[str]
) -> Sequence[str]:
    """The leading arguments that are values of the option."""
    if option.many:
        return arguments_until_next_flag
    first = arguments_until_next_flag[:1]
    if option.kind is bool and not (first and first[0].lower() in ("true", "false")):
        return []
    return first


def _add_flag_setting_or_problem(
    source: OptionSource, option: Option, flag: str, values: Sequence[str]
) -> None:
    """Adds the setting of a flag, or the problem with its value, to the source."""
    if not values and option.kind is not bool:
        remedy = f"Write {flag} VALUE, or {flag}=VALUE if the value starts with --."
        source.add_wrong_value_problem(option.name, flag, "needs a value", remedy, value=None)
        return
    text = ",".join(values) if values else "true"
    if option.name == "hub.repo_id" and not text:
        # such as a shell variable that is not set: the model would be uploaded nowhere
        remedy = "Write NAMESPACE/NAME, or none to upload nothing."
        source.add_wrong_value_problem(option.name, flag, "is empty", remedy, value='""')
        return
    try:
        source.add_setting(option.name, parse_text_value(option, text), flag)
    except InvalidValue as error:
        shown = format_short_masked_value(text)
        source.add_wrong_value_problem(option.name, flag, error.rule, error.remedy, value=shown)


def _add_stray_argument_problems(
    source: OptionSource, arguments: Sequence[str], *, may_be_run_file: bool = True
) -> None:
    """Reports arguments that no option takes; a run file among them gets the flag for it."""
    for text in arguments:
        remedy = (
            "Write options as --section.option value; quote a value that contains spaces or a "
            "pattern."
        )
        is_run_file = text.lower().endswith(tuple(PARSERS)) or os.path.isfile(text)
        if is_run_file and may_be_run_file:
            source.complete = False
            remedy = f"Did you mean --{_CONFIG_FILE} {text}? {remedy}"
        source.add_problem(format_short_masked_value(text), "belongs to no option", remedy)
