"""Run files: what a TOML, YAML or JSON file says, each problem with the line it stands on."""

from pathlib import Path

from flame_accel.config.dialect import DIALECT
from flame_accel.config.errors import ConfigError, Problem
from flame_accel.config.readers import Entry, SyntaxProblem, read_json, read_toml, read_yaml
from flame_accel.config.schema import sections
from flame_accel.config.settings import Setting, Source, option_named, suggest_option
from flame_accel.config.suggest import nearest
from flame_accel.config.values import from_file, remedy, show
from flame_accel.presets import RECIPES, resolve_preset, suggest_presets

_READERS = {".toml": read_toml, ".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}


def read_run_file(path: str, where: str) -> Source:
    """What a run file says.

    Args:
        path: The file, or the name of a recipe that ships; paths inside it stay as they are
            written.
        where: What asked for the file, should it not be readable.
    """
    source = Source()
    path = resolve_preset(RECIPES, path)
    try:
        entries = _load_entries(path, where)
    except ConfigError as error:
        source.problems.extend(error.problems)
        source.readable = False
        return source
    known = {*sections(), *(name.partition(".")[0] for name in DIALECT)}
    lines: dict[str, int] = {}
    for entry in entries:
        name = entry.name
        at = f"{path}:{entry.line}: {name if name.isprintable() else ascii(name)}"
        if name in lines:
            rule, advice = f"was given before, in line {lines[name]}", "Keep one of the two."
            source.problems.append(Problem(where=at, value=None, rule=rule, remedy=advice))
        elif entry.key is not None and (not entry.section or entry.section in known):
            _read_option(source, name, entry, at, known)
        elif entry.section not in known:
            _unknown_section(source, name, entry, at, known)
        lines.setdefault(name, entry.line)
    return source


def _load_entries(path: str, where: str) -> list[Entry]:
    reader = _READERS.get(Path(path).suffix.lower())
    try:
        if reader is None and not Path(path).suffix and not Path(path).exists():
            rule = "is neither a file nor a recipe that ships"
            raise _unusable(where, path, rule, suggest_presets(RECIPES, path))
        if reader is None:
            raise _unusable(where, path, "is not a run file", f"It ends in {', '.join(_READERS)}.")
        return reader(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
        raise _unusable(where, path, rule, "Name a file that is there.") from None
    except UnicodeDecodeError:
        raise _unusable(path, None, "is not text in UTF-8", "Save the file as UTF-8.") from None
    except SyntaxProblem as error:
        at, advice = f"{path}:{error.line}", "Mend this line; nothing of the file was used."
        raise _unusable(at, None, error.message, advice) from None
    except RecursionError:
        advice = "Write [section] and option = value, no more."
        raise _unusable(path, None, "is nested too deeply", advice) from None


def _unusable(where: str, path: str | None, rule: str, remedy: str) -> ConfigError:
    value = None if path is None else show(path)
    return ConfigError([Problem(where=where, value=value, rule=rule, remedy=remedy)])


def _read_option(source: Source, name: str, entry: Entry, at: str, known: set[str]) -> None:
    option = option_named(name)
    if option is None:
        if name in known:
            rule, advice = "is a section, not an option", f"Write its options beneath it: [{name}]."
        else:
            rule, advice = "there is no such option", suggest_option(source, name)
        source.problems.append(Problem(where=at, value=None, rule=rule, remedy=advice))
        return
    try:
        value = from_file(option, entry.value)
    except ValueError as error:
        source.unclear.add(name)
        value = show(entry.value)
        problem = Problem(
            where=at, value=value, rule=str(error), remedy=remedy(option, entry.value)
        )
        source.problems.append(problem)
    else:
        source.settings.append(Setting(name=name, value=value, where=at, shown=show(value)))


def _unknown_section(source: Source, name: str, entry: Entry, at: str, known: set[str]) -> None:
    """Reports a section once; what its options were probably meant to be is noted as unclear."""
    best = nearest(entry.section, known)
    if entry.key is not None:
        source.unclear.add(f"{best}.{entry.key}")
        return
    advice = f"Did you mean {best}?" if best else f"Sections are {', '.join(sections())}."
    problem = Problem(where=at, value=None, rule="there is no such section", remedy=advice)
    source.problems.append(problem)
