"""From a command line or a run file to a checked `Config`, with all problems at once."""

import os
from collections.abc import Sequence
from typing import Any

from flame_accel.config.dialect import ALIASES, DECAY_RATIO, DECAY_TYPE, FOREIGN
from flame_accel.config.errors import ConfigError, Problem, exit_with
from flame_accel.config.flags import read_flags
from flame_accel.config.help import print_help
from flame_accel.config.merging import merge
from flame_accel.config.mixture import find_mixture_problems
from flame_accel.config.paths import find_path_problems
from flame_accel.config.root import Config
from flame_accel.config.run_file import read_run_file
from flame_accel.config.schema import sections, value_of
from flame_accel.config.settings import Setting, Source
from flame_accel.config.validation import Finding, find_problems
from flame_accel.config.values import show

_FILE = "job.config_file"


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line asks for: defaults, then its run file, then its flags.

    Raises:
        ConfigError: With everything that is wrong, in the flags, in the file and together.
        SystemExit: With status 0, after printing the help, if `-h` or `--help` is among the flags.
    """
    if "-h" in argv or "--help" in argv:
        print_help()
        raise SystemExit(0)
    flags = read_flags(argv)
    # the last one counts, as for every flag
    path = {setting.name: setting.value for setting in flags.settings}.get(_FILE)
    sources = [read_run_file(path, f"--{_FILE}"), flags] if path else [flags]
    return _assemble(sources, with_paths=True)


def parse_or_exit(argv: Sequence[str]) -> Config:
    """`parse`, but prints the problems on stderr and exits with status 2 if there are any."""
    try:
        return parse(argv)
    except ConfigError as error:
        exit_with(error)


def load_file(path: str | os.PathLike[str]) -> Config:
    """The configuration that a run file alone asks for, as one written by `to_toml` does.

    Paths inside it are not looked for: the file may tell of a run on another machine.

    Raises:
        ConfigError: With everything that is wrong.
    """
    return _assemble([read_run_file(os.fspath(path), "run file")], with_paths=False)


def _assemble(sources: Sequence[Source], *, with_paths: bool) -> Config:
    merged = merge(sources)
    settings = merged.settings
    values: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    foreign = {name: setting.value for name, setting in settings.items() if name in FOREIGN}
    for name, setting in settings.items():
        if name not in FOREIGN:
            section, _, key = name.partition(".")
            values[section][key] = setting.value
    config = Config(**{name: cls(**values[name]) for name, cls in sections().items()})
    findings = list(find_problems(config, settings.keys(), foreign))
    if with_paths:
        findings += [*find_mixture_problems(config), *find_path_problems(config)]
    problems = [problem for source in sources for problem in source.problems] + merged.problems
    problems += [
        _problem(config, finding, settings)
        for finding in findings
        if _certain(finding, sources, settings)
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _certain(finding: Finding, sources: Sequence[Source], settings: dict[str, Setting]) -> bool:
    """Whether a finding rests on what the user wrote, not on what could not be read."""
    unclear = {name for source in sources for name in source.unclear}
    unclear |= {alias.target for name, alias in ALIASES.items() if name in unclear}
    if unclear & {DECAY_RATIO.name, DECAY_TYPE.name}:
        unclear |= {"optimizer.scheduler", "optimizer.decay_ratio", "optimizer.decay_type"}
    complete = all(source.readable for source in sources)
    return all(name not in unclear and (complete or name in settings) for name in finding.options)


def _problem(config: Config, finding: Finding, settings: dict[str, Setting]) -> Problem:
    """A finding at the place where the user gave one of its options, if they gave any."""
    blamed = [name for name in finding.options if name in settings] or finding.options
    name = blamed[0]
    if name in settings:
        where, shown = settings[name].where, settings[name].shown
    else:
        value = value_of(config, name)
        where, shown = f"--{name}", None if value is None else show(value)
    return Problem(where=where, value=shown, rule=finding.rule, remedy=finding.remedy)
