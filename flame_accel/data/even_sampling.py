"""Evenly spread samples of anything that has indices; nothing is read here."""

from collections.abc import Sequence


def evenly_spread_indices(total: int, max_or_zero_for_all: int) -> Sequence[int]:
    """At most `max_or_zero_for_all` evenly spread indices below `total`; with 0 all of them."""
    if max_or_zero_for_all == 0 or total <= max_or_zero_for_all:
        return range(total)
    count = max_or_zero_for_all
    return [i * total // count for i in range(count)]
