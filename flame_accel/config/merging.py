"""Sources into one value per option: later sources win, and flame's names become ours.

Within one source nothing wins over a contradiction: two names of one option with different values
are a problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flame_accel.config.dialect import ALIASES, CONVERTERS, DECAY_RATIO, DECAY_TYPE
from flame_accel.config.errors import Problem
from flame_accel.config.settings import Setting, Source

_DECAY = (DECAY_RATIO.name, DECAY_TYPE.name)
_RECIPE = "float8.recipe_name"


@dataclass(kw_only=True, slots=True)
class Merged:
    """What all sources say together."""

    settings: dict[str, Setting] = field(default_factory=dict)
    """By our name, or by flame's where there is no other."""
    problems: list[Problem] = field(default_factory=list)


def merge(sources: Sequence[Source]) -> Merged:
    """Merges sources, the strongest last."""
    merged = Merged()
    decay = _translate_decay(sources, merged.problems)
    converters = _translate_converters(sources)
    for position, source in enumerate(sources):
        # of one flag that is given twice, the last counts
        given = {setting.name: setting for setting in source.settings}
        apart = (*_DECAY, CONVERTERS.name)
        translated = [_translate(given[name]) for name in given if name not in apart]
        ours: dict[str, Setting] = {}
        together = [*decay.get(position, []), *converters.get(position, [])]
        for setting in [*translated, *together]:
            other = ours.setdefault(setting.name, setting)
            if other is not setting and other.value != setting.value:
                merged.problems.append(_contradiction(other, setting))
        merged.settings.update(ours)
    return merged


def _translate(setting: Setting) -> Setting:
    alias = ALIASES.get(setting.name)
    if alias is None:
        return setting
    return replace(setting, name=alias.target, value=alias.convert(setting.value))


def _translate_decay(
    sources: Sequence[Source], problems: list[Problem]
) -> dict[int, list[Setting]]:
    """Flame's two decay options together, as ours, at the position of the later of the two.

    With a ratio flame's schedule is wsd; without one it decays from the end of the warm-up, in the
    shape of the type. Either may come from another source than the other.
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
    ratio, kind = (last.get(name) for name in _DECAY)
    if ratio is not None and ratio.value is not None:
        ours = [
            replace(ratio, name="optimizer.scheduler", value="wsd"),
            replace(ratio, name="optimizer.decay_ratio"),
        ]
        if kind is not None:
            ours.append(replace(kind, name="optimizer.decay_type"))
        return {place: ours}
    if kind is None:
        [only] = last.values()
        kind = replace(only, value=DECAY_TYPE.default)
    if kind.value == "sqrt":
        rule = "a sqrt decay from the end of the warm-up is not supported"
        advice = f"Add {DECAY_RATIO.name}, the length of the decay as a fraction of the steps."
        problems.append(Problem(where=kind.where, value=kind.shown, rule=rule, remedy=advice))
        return {}
    return {place: [replace(kind, name="optimizer.scheduler")]}


def _translate_converters(sources: Sequence[Source]) -> dict[int, list[Setting]]:
    """Flame's converters as ours, at their position: float8 is tensorwise, unless another is given.

    An empty list, flame's default, says nothing.
    """
    found: dict[int, list[Setting]] = {}
    for position, source in enumerate(sources):
        for setting in source.settings:
            if setting.name == _RECIPE and setting.value is not None:
                return {}
            if setting.name == CONVERTERS.name and setting.value:
                found[position] = [replace(setting, name=_RECIPE, value="tensorwise")]
    return found


def _contradiction(one: Setting, two: Setting) -> Problem:
    """A problem that shows two names of one option with the values that they were given."""
    rule = f"contradicts {one.where} = {one.shown}: both mean {one.name}"
    return Problem(where=two.where, value=two.shown, rule=rule, remedy="Keep one of the two.")
