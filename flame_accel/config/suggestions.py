"""The name, choice or file that a mistyped one most likely means."""

import difflib
from collections.abc import Collection


def nearest_option_name(name: str, names: Collection[str]) -> str | None:
    """The option or section that the user most likely meant, or None if nothing is near.

    An option of the same name in another section wins over one that is spelled alike.
    """
    key = name.rpartition(".")[2]
    same_key = [candidate for candidate in names if candidate.rpartition(".")[2] == key]
    if same_key and name not in same_key:
        return difflib.get_close_matches(name, same_key, n=1, cutoff=0.0)[0]
    return nearest_text(name, names)


def nearest_text(text: str, candidates: Collection[str]) -> str | None:
    """The candidate that the user most likely meant, ignoring case, or None if nothing is near."""
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    # of three letters, one edit changes a third
    cutoff = 0.7 if len(text) > 4 else 0.6
    found = difflib.get_close_matches(text.lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[found[0]] if found else None
