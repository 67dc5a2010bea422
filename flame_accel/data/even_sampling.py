"""Evenly spread samples of anything that has indices; nothing is read here."""


def evenly_spread_indices(total: int, max_indices: int) -> list[int]:
    """At most `max_indices` evenly spread indices below `total`; with 0 all of them."""
    count = min(total, max_indices) if max_indices else total
    return [i * total // count for i in range(count)]
