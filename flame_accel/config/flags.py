"""The command line: `--section.option value`, in every form that is accepted.

Booleans are `--a.b`, `--a.no_b`, `--a.b=true|false` and `--a.b true|false`; a dash in a name counts
as an underscore. All flags are read, however many are wrong. tyro, which draws the help, ends at
the first problem and does not know `=true`; so the flags are read here.
"""

from collections.abc import Sequence

from flame_accel.config.dialect import DIALECT
from flame_accel.config.errors import Problem
from flame_accel.config.schema import Option, options
from flame_accel.config.settings import Setting, Source, option_named, suggest_option
from flame_accel.config.values import from_text, remedy, show


def read_flags(argv: Sequence[str]) -> Source:
    """What the flags say."""
    source = Source()
    position = 0
    while position < len(argv):
        flag, taken = argv[position], position + 1
        while taken < len(argv) and not argv[taken].startswith("--"):
            taken += 1
        _read_flag(source, flag, argv[position + 1 : taken])
        position = taken
    return source


def _read_flag(source: Source, flag: str, following: Sequence[str]) -> None:
    """Reads one flag and what follows it up to the next one."""
    written, equals, value = flag.partition("=")
    name = written.removeprefix("--").replace("-", "_")
    option, negated = option_named(name), False
    if option is None:
        option = option_named(name.replace(".no_", ".", 1))
        negated = option is not None
    if not flag.startswith("--"):
        _stray(source, [flag, *following])
    elif option is None or (negated and option.kind is not bool):
        _unknown(source, written, name)
    elif negated:
        if equals:
            rule, advice = "takes no value", f"Write {written}, or --{option.name}={value}."
            _wrong(source, option, written, value, rule, advice)
        else:
            setting = Setting(name=option.name, value=False, where=written, shown="false")
            source.settings.append(setting)
        _stray(source, following)
    else:
        values = [value] if equals else _values(option, following)
        _stray(source, following if equals else following[len(values) :])
        _set(source, option, written, values)


def _values(option: Option, following: Sequence[str]) -> Sequence[str]:
    """Those of the following arguments that belong to the option."""
    if option.many:
        return following
    if option.kind is bool and (not following or following[0].lower() not in ("true", "false")):
        return []
    return following[:1]


def _set(source: Source, option: Option, flag: str, values: Sequence[str]) -> None:
    if not values and option.kind is not bool:
        advice = f"Write {flag} VALUE, or {flag}=VALUE if the value starts with --."
        _wrong(source, option, flag, None, "needs a value", advice)
        return
    text = ",".join(values) if values else "true"
    try:
        value = from_text(option, text)
    except ValueError as error:
        _wrong(source, option, flag, text, str(error), remedy(option, text))
    else:
        setting = Setting(name=option.name, value=value, where=flag, shown=show(value))
        source.settings.append(setting)


def _wrong(
    source: Source, option: Option, flag: str, text: str | None, rule: str, advice: str
) -> None:
    source.unclear.add(option.name)
    value = None if text is None else show(text)
    source.problems.append(Problem(where=flag, value=value, rule=rule, remedy=advice))


def _unknown(source: Source, flag: str, name: str) -> None:
    negations = tuple(
        option.name.replace(".", ".no_", 1)
        for option in (*options().values(), *DIALECT.values())
        if option.kind is bool
    )
    advice = suggest_option(source, name, prefix="--", extra=negations)
    rule = "there is no such option"
    source.problems.append(Problem(where=flag, value=None, rule=rule, remedy=advice))


def _stray(source: Source, arguments: Sequence[str]) -> None:
    advice = "Write options as --section.option value; quote a value that contains spaces."
    source.problems.extend(
        Problem(where=show(argument), value=None, rule="belongs to no option", remedy=advice)
        for argument in arguments
    )
