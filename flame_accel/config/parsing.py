"""From a command line or a run file to a checked `Config`, with all problems at once."""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from flame_accel.config.derived_defaults import fill_derived_defaults
from flame_accel.config.errors import BrokenRule, ConfigError, Problem, exit_on_user_error
from flame_accel.config.flags import read_flags_and_problems
from flame_accel.config.flame_aliases import ALIASES, DECAY_RATIO, DECAY_TYPE, FLAME_ONLY
from flame_accel.config.help import format_help, requested_help_topic_empty_for_common
from flame_accel.config.input_checks import find_broken_dataset_and_path_rules
from flame_accel.config.run_file import read_run_file_and_problems
from flame_accel.config.schema import Config, option_value, options, sections
from flame_accel.config.settings import OptionSource, Setting, merge_sources
from flame_accel.config.validation import find_broken_rules
from flame_accel.config.values import format_short_masked_value

_CONFIG_FILE = "job.config_file"


def parse(argv: Sequence[str]) -> Config:
    """The configuration of a command line: defaults, then its run file, then its flags.

    Raises:
        ConfigError: With all problems of the flags, of the file and of both together.
    """
    flags = read_flags_and_problems(argv)
    # the last one counts, as for every flag
    path = {setting.name: setting.value for setting in flags.settings}.get(_CONFIG_FILE)
    file = (
        read_run_file_and_problems(path, named_by=f"--{_CONFIG_FILE}") if path else OptionSource()
    )
    return _build_checked_config(file, flags, run_file=path or None, check_inputs=True)


def parse_or_exit(argv: Sequence[str]) -> Config:
    """`parse`, but prints the help and exits with status 0 if `-h` or `--help` is in `argv`.

    If there are problems, prints them on stderr and exits with status 2.
    """
    with exit_on_user_error():
        topic = requested_help_topic_empty_for_common(argv)
        if topic is not None:
            print(format_help(topic, width=shutil.get_terminal_size().columns))
            raise SystemExit(0)
        return parse(argv)


def load_run_file(path: str | os.PathLike[str]) -> Config:
    """The configuration of a run file alone, such as one written by `to_toml`.

    Paths inside it need not exist: the file may come from a run on another machine.

    Raises:
        ConfigError: With all problems.
    """
    run_file = os.fspath(path)
    file = read_run_file_and_problems(run_file, named_by="run file")
    return _build_checked_config(file, OptionSource(), run_file=run_file, check_inputs=False)


def _build_checked_config(
    file: OptionSource, flags: OptionSource, *, run_file: str | None, check_inputs: bool
) -> Config:
    """The configuration of a run file and flags.

    Raises:
        ConfigError: With all problems.
    """
    sources = [file, flags]
    merged = merge_sources(sources)
    settings = merged.settings
    flame_only = {name: setting.value for name, setting in settings.items() if name in FLAME_ONLY}
    config = fill_derived_defaults(
        _config_from_settings(settings),
        settings.keys(),
        run_file=run_file,
        run_file_config=_config_from_settings(merge_sources([file]).settings),
    )
    broken = list(find_broken_rules(config, settings.keys(), flame_only))
    if check_inputs:
        broken += find_broken_dataset_and_path_rules(config)
    problems = [problem for source in sources for problem in source.problems] + merged.problems
    unread = _misread_or_unread_option_names(sources, settings)
    problems += [
        _problem_from_broken_rule(config, rule, settings)
        for rule in broken
        # not by what the user wrote, perhaps
        if unread.isdisjoint(rule.options)
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _config_from_settings(settings: Mapping[str, Setting]) -> Config:
    """The configuration with these settings and plain defaults for everything else."""
    values: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    for name, setting in settings.items():
        if name not in FLAME_ONLY:
            section, _, key = name.partition(".")
            values[section][key] = setting.value
    return Config(**{name: section(**values[name]) for name, section in sections().items()})


def _misread_or_unread_option_names(
    sources: Sequence[OptionSource], settings: Mapping[str, Setting]
) -> set[str]:
    """Our names of the options that are set wrongly, or perhaps in what could not be read."""
    unread = {name for source in sources for name in source.misread}
    unread |= {alias.target for name, alias in ALIASES.items() if name in unread}
    if unread & {DECAY_RATIO.name, DECAY_TYPE.name}:
        unread |= {"optimizer.scheduler", "optimizer.decay_ratio", "optimizer.decay_type"}
    if not all(source.complete for source in sources):
        unread |= options().keys() - settings.keys()
    return unread


def _problem_from_broken_rule(
    config: Config, broken: BrokenRule, settings: Mapping[str, Setting]
) -> Problem:
    """The broken rule with the place where the user set one of its options, if they did."""
    name = next((name for name in broken.options if name in settings), broken.options[0])
    if name in settings:
        where, shown = settings[name].where, settings[name].shown
    else:
        value = option_value(config, name)
        where = f"--{name}"
        shown = None if value is None else format_short_masked_value(value)
    return Problem(where=where, value=shown, rule=broken.rule, remedy=broken.remedy)
