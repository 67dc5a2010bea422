"""Run files: reads TOML, YAML and JSON files, and writes a configuration as TOML.

Each problem names its line. The syntax of the formats is in `file_formats`.
"""

import json
from collections.abc import Collection
from pathlib import Path

from flame_accel.config.errors import ConfigError, Problem
from flame_accel.config.evaluation_sets import OPTION as EVALUATION_SETS
from flame_accel.config.evaluation_sets import join_set_tables, set_tables_as_texts
from flame_accel.config.file_formats import PARSERS, FileEntry, SyntaxProblem, read_run_file_text
from flame_accel.config.flame_aliases import FLAME_OPTIONS
from flame_accel.config.schema import Config, option_value, options, sections
from flame_accel.config.secrets import mask_secrets
from flame_accel.config.settings import OptionSource, find_own_or_flame_option
from flame_accel.config.suggestions import nearest_option_name
from flame_accel.config.values import InvalidValue, convert_file_value, format_short_masked_value
from flame_accel.presets import RECIPES, existing_else_preset_path_or_unchanged, suggest_presets


def read_run_file_and_problems(path: str, *, named_by: str) -> OptionSource:
    """The settings and problems of a run file.

    Args:
        path: The file, or the name of a recipe in the package.
        named_by: Flag or words that name the file in the message if it cannot be read.
    """
    source = OptionSource()
    path = existing_else_preset_path_or_unchanged(RECIPES, path)
    try:
        entries = join_set_tables(_parse_run_file(path, named_by))
    except ConfigError as error:
        source.problems.extend(error.problems)
        source.complete = False
        return source
    known = {*sections(), *(name.partition(".")[0] for name in FLAME_OPTIONS)}
    lines: dict[str, int] = {}
    for entry in entries:
        name = entry.name
        place_in_file = f"{path}:{entry.line}: {name if name.isprintable() else ascii(name)}"
        if name in lines:
            rule = f"was already set in line {lines[name]}"
            source.add_problem(place_in_file, rule, "Keep one of the two.")
        elif entry.key is not None and (not entry.section or entry.section in known):
            _add_option_setting_or_problem(source, entry, place_in_file, known)
        elif entry.section not in known:
            _add_unknown_section_problem(source, entry, place_in_file, known)
        lines.setdefault(name, entry.line)
    return source


def _parse_run_file(path: str, named_by: str) -> list[FileEntry]:
    """The entries of a run file.

    Raises:
        ConfigError: It cannot be read, or is not valid in its format.
    """
    parser = PARSERS.get(Path(path).suffix.lower())
    try:
        if parser is None and not Path(path).suffix and not Path(path).exists():
            rule = "is neither a file nor a recipe in the package"
            raise _unusable_file_error(named_by, path, rule, suggest_presets(RECIPES, path))
        if parser is None:
            remedy = f"Name a file that ends in {', '.join(PARSERS)}."
            raise _unusable_file_error(named_by, path, "is not a run file", remedy)
        return parser(read_run_file_text(Path(path)))
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
        raise _unusable_file_error(named_by, path, rule, "Name an existing file.") from None
    except UnicodeDecodeError:
        rule, remedy = "is not text in UTF-8", "Save the file as UTF-8."
        raise _unusable_file_error(path, None, rule, remedy) from None
    except SyntaxProblem as error:
        line, remedy = f"{path}:{error.line}", "Correct this line; nothing in the file was used."
        raise _unusable_file_error(line, None, error.message, remedy) from None
    except RecursionError:
        remedy = "Write only [section] and option = value."
        raise _unusable_file_error(path, None, "is nested too deeply", remedy) from None


def _unusable_file_error(where: str, path: str | None, rule: str, remedy: str) -> ConfigError:
    value = None if path is None else format_short_masked_value(path)
    return ConfigError([Problem(where=where, value=value, rule=rule, remedy=remedy)])


def _add_option_setting_or_problem(
    source: OptionSource, entry: FileEntry, place_in_file: str, known_sections: Collection[str]
) -> None:
    """Adds the setting of an entry, or the problem with it, to the source."""
    name = entry.name
    option = find_own_or_flame_option(name)
    if option is None:
        if name in known_sections:
            rule, remedy = "is a section, not an option", f"Write its options below it: [{name}]."
        else:
            rule, remedy = "there is no such option", source.suggest_and_mark_misread(name)
        source.add_problem(place_in_file, rule, remedy)
        return
    try:
        value = set_tables_as_texts(entry.value) if name == EVALUATION_SETS else entry.value
        source.add_setting(name, convert_file_value(option, value), place_in_file)
    except InvalidValue as error:
        shown = format_short_masked_value(entry.value)
        source.add_wrong_value_problem(name, place_in_file, error.rule, error.remedy, value=shown)


def _add_unknown_section_problem(
    source: OptionSource, entry: FileEntry, place_in_file: str, known_sections: Collection[str]
) -> None:
    """Reports an unknown section once; the options probably meant in it are marked as misread."""
    best = nearest_option_name(entry.section, known_sections)
    if entry.key is not None:
        source.misread.add(f"{best}.{entry.key}")
        return
    remedy = f"Did you mean {best}?" if best else f"The sections are {', '.join(sections())}."
    source.add_problem(place_in_file, "there is no such section", remedy)


def to_toml(config: Config, *, only_changed: bool = False) -> str:
    """All options as a TOML run file that reads back equal; "none" stands for None.

    Secrets are masked: a run that reads the file asks for these options.

    Args:
        config: Whose options.
        only_changed: Leaves out those that have their defaults.
    """
    lines: list[str] = []
    defaults = Config()
    for name in options():
        if only_changed and option_value(config, name) == option_value(defaults, name):
            continue
        section, _, key = name.partition(".")
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        value = _format_toml_value_with_masked_secrets(option_value(config, name))
        lines.append(f"{key} = {value}")
    return "\n".join(lines[1:]) + "\n"


def _format_toml_value_with_masked_secrets(value: object) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format_toml_value_with_masked_secrets, value))}]"
    if isinstance(value, str):
        # json escapes everything that toml needs escaped, except the delete character
        return json.dumps(mask_secrets(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
