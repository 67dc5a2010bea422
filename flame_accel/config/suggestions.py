"""The name, choice or file that a mistyped one most likely means."""

import functools
from collections.abc import Callable, Iterable

# a name in the wrong section is as near as one with two typing errors
_WRONG_SECTION = 2


def edit_distance(a: str, b: str, limit: int) -> int:
    """Smallest number of characters to insert, delete, replace or swap to turn a into b.

    Damerau 1964, restricted: a swapped pair is not edited again (optimal string alignment). Beyond
    the limit the result is not exact, only larger than the limit.
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


def nearest_option_name(name: str, names: Iterable[str]) -> str | None:
    """The option or section that the user most likely meant, or None if nothing is near.

    Names are compared as `section.option`, where a wrong section counts as two edits, or as a whole
    if there is no dot. Of several that are equally near the first is taken.
    """
    section, _, key = name.rpartition(".")
    whole = name.count(".") != 1

    @functools.cache
    def section_distance(other: str) -> int:
        return min(edit_distance(section, other, _WRONG_SECTION), _WRONG_SECTION)

    def distance(candidate: str, limit: int) -> int:
        other_section, _, other_key = candidate.rpartition(".")
        apart = section_distance(other_section)
        if apart <= limit:
            apart += edit_distance(key, other_key, limit - apart)
        return min(apart, edit_distance(name, candidate, limit)) if whole else apart

    return _find_nearest(names, distance, len(name))


def nearest_text(text: str, candidates: Iterable[str]) -> str | None:
    """The candidate that the user most likely meant, ignoring case, or None if nothing is near."""
    return _find_nearest(
        candidates,
        lambda candidate, limit: edit_distance(text.lower(), candidate.lower(), limit),
        len(text),
    )


def _find_nearest(
    names: Iterable[str], distance_up_to_limit: Callable[[str, int], int], text_length: int
) -> str | None:
    """The first name with the least distance, if that is at most a quarter of the length, or 2."""
    best, least = None, max(2, text_length // 4) + 1
    for candidate in names:
        # only names nearer than the best so far need an exact distance
        apart = distance_up_to_limit(candidate, least - 1)
        if apart < least:
            best, least = candidate, apart
    return best
