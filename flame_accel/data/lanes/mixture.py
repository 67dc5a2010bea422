"""Which source the next document comes from, so that tokens keep to the shares of the sources.

WF2Q (Bennett and Zhang, "WF2Q: worst-case fair weighted fair queueing", 1996), with documents for
packets and shares of the tokens for rates: after every document each source is within the length
of the longest document of its share. Nothing here reads documents.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import lcm


@lru_cache(maxsize=16)
def _weights(shares: tuple[float, ...]) -> tuple[int, ...]:
    """Integers in the very proportion of the shares: rounding could leave no source to choose."""
    assert min(shares) > 0
    ratios = [share.as_integer_ratio() for share in shares]
    scale = lcm(*(below for _, below in ratios))
    return tuple(above * (scale // below) for above, below in ratios)


def choose_source(shares: Sequence[float], tokens: Sequence[int], lengths: Sequence[int]) -> int:
    """Index of the source whose document comes next.

    Among the sources that have not had more than their share so far, the one whose document would
    be finished first if all were read at once, each at the rate of its share; the lower index of
    equal ones.

    Args:
        shares: of each source in the tokens, above 0; only their proportions matter.
        tokens: what each source has given so far.
        lengths: tokens of each source's next document.
    """
    if len(shares) == 1:
        return 0
    weights = _weights(tuple(shares))
    rate, total = sum(weights), sum(tokens)
    best, best_finish = -1, 0
    for i, weight in enumerate(weights):
        if tokens[i] * rate > weight * total:
            continue
        finish = tokens[i] + lengths[i]
        # finish / weight, compared without a division
        if best < 0 or finish * weights[best] < best_finish * weight:
            best, best_finish = i, finish
    return best
