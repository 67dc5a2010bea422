"""What the flags or a run file set, and how several such sources become one value per option.

Later sources win, and flame's names become ours. Two names of one option with different values in
the same source are a problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flame_accel.config.errors import Problem
from flame_accel.config.flame_aliases import (
    ALIASES,
    CONVERTERS,
    DECAY_RATIO,
    DECAY_TYPE,
    FLAME_OPTIONS,
)
from flame_accel.config.schema import Option, options
from flame_accel.config.suggestions import nearest_option_name
from flame_accel.config.values import format_short_masked_value

_DECAY = (DECAY_RATIO.name, DECAY_TYPE.name)
_RECIPE = "float8.recipe_name"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A value for an option, and where the user set it."""

    name: str
    value: Any
    where: str
    """The flag, or the file, line and option."""
    shown: str
    """The value as the user wrote it, even if the name was translated."""


@dataclass(kw_only=True, slots=True)
class OptionSource:
    """What the flags or one run file set, in the order they are written."""

    settings: list[Setting] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    misread: set[str] = field(default_factory=set)
    """Options that the source sets wrongly: a problem is reported already, no second one is."""
    complete: bool = True
    """False if the user may have set more than could be read, such as in an unreadable file."""

    def add_setting(self, name: str, value: Any, where: str) -> None:
        """Adds the value of an option that was read at this flag or place in a file."""
        shown = format_short_masked_value(value)
        setting = Setting(name=name, value=value, where=where, shown=shown)
        self.settings.append(setting)

    def add_problem(self, where: str, rule: str, remedy: str, *, value: str | None = None) -> None:
        """Adds a rule that is broken at this flag or place in a file, with the value shown."""
        self.problems.append(Problem(where=where, value=value, rule=rule, remedy=remedy))

    def add_wrong_value_problem(
        self, name: str, where: str, rule: str, remedy: str, *, value: str | None
    ) -> None:
        """Adds the problem with the value of an option, which is marked as misread."""
        self.misread.add(name)
        self.add_problem(where, rule, remedy, value=value)

    def suggest_and_mark_misread(
        self, name: str, *, prefix: str = "", other_names: tuple[str, ...] = ()
    ) -> str:
        """The remedy for an unknown option; marks the one that was probably meant as misread."""
        best = nearest_option_name(name, [*options(), *FLAME_OPTIONS, *other_names])
        if best is None:
            return "Run `bash train.sh -h all` for a list of all options."
        self.misread.add(best)
        return f"Did you mean {prefix}{best}?"


@dataclass(kw_only=True, slots=True)
class MergedSettings:
    """What all sources set together."""

    settings: dict[str, Setting] = field(default_factory=dict)
    """By our name, or by flame's if there is no other."""
    problems: list[Problem] = field(default_factory=list)


def find_own_or_flame_option(name: str) -> Option | None:
    """The option of this name, ours or flame's; None if there is none."""
    return options().get(name) or FLAME_OPTIONS.get(name)


def merge_sources(sources: Sequence[OptionSource]) -> MergedSettings:
    """Merges sources; the last one has the highest priority."""
    merged = MergedSettings()
    decay = _translate_flame_decay_by_source_index(sources, merged.problems)
    converters = _translate_flame_converters_by_source_index(sources)
    for position, source in enumerate(sources):
        # if a flag is given twice, the last one counts
        given = {setting.name: setting for setting in source.settings}
        separate = (*_DECAY, CONVERTERS.name)
        translated = [_translate_alias(given[name]) for name in given if name not in separate]
        ours: dict[str, Setting] = {}
        together = [*decay.get(position, []), *converters.get(position, [])]
        for setting in [*translated, *together]:
            other = ours.setdefault(setting.name, setting)
            if other is not setting and other.value != setting.value:
                merged.problems.append(_contradiction_problem(other, setting))
        merged.settings.update(ours)
    return merged


def _translate_alias(setting: Setting) -> Setting:
    """The setting under our name, if its name is one of flame's aliases."""
    alias = ALIASES.get(setting.name)
    if alias is None:
        return setting
    return replace(setting, name=alias.target, value=alias.convert(setting.value))


def _translate_flame_decay_by_source_index(
    sources: Sequence[OptionSource], out_problems: list[Problem]
) -> dict[int, list[Setting]]:
    """Flame's two decay options as ours, by the position of the source that sets the later one.

    With a ratio flame's schedule is wsd; without one it decays from the end of the warm-up, in the
    shape of the type. The two may come from different sources.
    """
    last: dict[str, Setting] = {}
    place = 0
    for position, source in enumerate(sources):
        for setting in source.settings:
            if setting.name in _DECAY:
                last[setting.name] = setting
                place = position
    if not last:
        return {}
    ratio, shape = (last.get(name) for name in _DECAY)
    if ratio is not None and ratio.value is not None:
        ours = [
            replace(ratio, name="optimizer.scheduler", value="wsd"),
            replace(ratio, name="optimizer.decay_ratio"),
        ]
        if shape is not None:
            ours.append(replace(shape, name="optimizer.decay_type"))
        return {place: ours}
    if shape is None:
        [only] = last.values()
        shape = replace(only, value=DECAY_TYPE.default)
    if shape.value == "sqrt":
        rule = "a sqrt decay from the end of the warm-up is not supported"
        remedy = f"Add {DECAY_RATIO.name}, the length of the decay as a fraction of the steps."
        out_problems.append(Problem(where=shape.where, value=shape.shown, rule=rule, remedy=remedy))
        return {}
    return {place: [replace(shape, name="optimizer.scheduler")]}


def _translate_flame_converters_by_source_index(
    sources: Sequence[OptionSource],
) -> dict[int, list[Setting]]:
    """Flame's converters as our float8 recipe, by the position of the source that sets them.

    float8 means tensorwise unless another recipe is set. An empty list, flame's default, is
    ignored.
    """
    recipes: dict[int, list[Setting]] = {}
    for position, source in enumerate(sources):
        for setting in source.settings:
            if setting.name == _RECIPE and setting.value is not None:
                return {}
            if setting.name == CONVERTERS.name and setting.value:
                recipes[position] = [replace(setting, name=_RECIPE, value="tensorwise")]
    return recipes


def _contradiction_problem(first: Setting, second: Setting) -> Problem:
    """The problem that two names of one option are set to different values."""
    rule = f"contradicts {first.where} = {first.shown}: both set {first.name}"
    return Problem(where=second.where, value=second.shown, rule=rule, remedy="Keep one of the two.")
