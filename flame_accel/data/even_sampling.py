"""Evenly spread samples of anything that has indices; nothing is read here."""


def evenly_spread_indices(total: int, max_or_zero_for_all: int) -> list[int]:
    """At most `max_or_zero_for_all` evenly spread indices below `total`; with 0 all of them."""
    count = min(total, max_or_zero_for_all) if max_or_zero_for_all else total
    return [i * total // count for i in range(count)]
