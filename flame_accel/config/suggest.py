"""The nearest right name for a wrong one."""

from collections.abc import Iterable

# a name in the wrong section is as near as one with two typing errors
_WRONG_SECTION = 2


def edits(a: str, b: str) -> int:
    """Least number of characters to insert, delete, replace or swap to turn a into b.

    Damerau 1964, restricted: a swapped pair is not edited again (optimal string alignment).
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that the user most likely meant, or None when nothing is near.

    Names are compared whole, or as `section.option`, where a wrong section counts as two edits.
    """
    section, _, key = name.rpartition(".")

    def distance(candidate: str) -> int:
        other_section, _, other_key = candidate.rpartition(".")
        apart = min(edits(section, other_section), _WRONG_SECTION) + edits(key, other_key)
        return min(apart, edits(name, candidate))

    best = min(names, key=distance, default=None)
    if best is None or distance(best) > max(2, len(name) // 4):
        return None
    return best
