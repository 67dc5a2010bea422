"""The nearest right name, or choice, for a wrong one."""

import functools
from collections.abc import Callable, Iterable

# a name in the wrong section is as near as one with two typing errors
_WRONG_SECTION = 2


def edits(a: str, b: str, limit: int) -> int:
    """Least number of characters to insert, delete, replace or swap to turn a into b.

    Damerau 1964, restricted: a swapped pair is not edited again (optimal string alignment). Beyond
    the limit the number is not exact, only beyond it too.
    """
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit and min(before) > limit:
            break
    return max(row[-1], min(row))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that the user most likely meant, or None when nothing is near.

    Names are compared as `section.option`, where a wrong section counts as two edits, or whole if
    the dot is missing. Of several that are equally near the first is taken.
    """
    section, _, key = name.rpartition(".")
    whole = name.count(".") != 1

    @functools.cache
    def section_distance(other: str) -> int:
        return min(edits(section, other, _WRONG_SECTION), _WRONG_SECTION)

    def distance(candidate: str, limit: int) -> int:
        other_section, _, other_key = candidate.rpartition(".")
        apart = section_distance(other_section)
        if apart <= limit:
            apart += edits(key, other_key, limit - apart)
        return min(apart, edits(name, candidate, limit)) if whole else apart

    return _nearest(names, distance, len(name))


def nearest_choice(text: str, choices: Iterable[str]) -> str | None:
    """The choice that the user most likely meant, in whatever case, or None."""
    return _nearest(
        choices,
        lambda choice, limit: edits(text.lower(), choice.lower(), limit),
        len(text),
    )


def _nearest(names: Iterable[str], distance: Callable[[str, int], int], length: int) -> str | None:
    best, least = None, max(2, length // 4) + 1
    for candidate in names:
        # only what is nearer than the best so far has to be measured to the end
        apart = distance(candidate, least - 1)
        if apart < least:
            best, least = candidate, apart
    return best
