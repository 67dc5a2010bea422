"""Mixtures of sources: which one the next document comes from, so that tokens keep to the shares.

WF2Q (Bennett and Zhang, "WF2Q: worst-case fair weighted fair queueing", 1996), with documents for
packets and shares of the tokens for rates: after every document each source is within the length
of the longest document of its share.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import lcm

from flame_accel.data.cursors import SourceCursor
from flame_accel.data.stages import DocumentReader


class MixtureReader:
    """The documents of a lane from all of its sources.

    Args:
        readers: one per source.
        shares: of each source in the tokens, above 0; only their proportions matter.
        source: the source whose document is unfinished, if one is.
    """

    def __init__(
        self, readers: Sequence[DocumentReader], shares: Sequence[float], source: int = 0
    ) -> None:
        assert len(readers) == len(shares)
        self.source = source
        """Index of the source that was chosen last."""
        self._readers = readers
        self._shares = tuple(shares)

    @property
    def cursors(self) -> tuple[SourceCursor, ...]:
        """Cursor of each source."""
        return tuple(reader.cursor for reader in self._readers)

    def choose_reader(self, *, same_as_last: bool = False) -> DocumentReader:
        """The reader of the next document; with `same_as_last` of the one that was chosen last."""
        readers = self._readers
        if len(readers) > 1 and not same_as_last:
            tokens = [reader.cursor.tokens for reader in readers]
            lengths = [len(reader.peek().tokens) for reader in readers]
            self.source = choose_source(self._shares, tokens, lengths)
        return readers[self.source]


@lru_cache(maxsize=16)
def _integer_weights(shares: tuple[float, ...]) -> tuple[int, ...]:
    """Integers in the exact proportion of the shares: rounding could leave no source to choose."""
    assert min(shares) > 0
    ratios = [share.as_integer_ratio() for share in shares]
    scale = lcm(*(below for _, below in ratios))
    return tuple(above * (scale // below) for above, below in ratios)


def choose_source(
    shares: Sequence[float], tokens_read: Sequence[int], next_lengths: Sequence[int]
) -> int:
    """Index of the source whose document comes next.

    Among the sources that have not given more than their share so far, the one whose document would
    be finished first if all were read at once, each at the rate of its share; of equal ones the
    first.

    Args:
        shares: of each source in the tokens, above 0; only their proportions matter.
        tokens_read: number of tokens that each source has given so far.
        next_lengths: number of tokens of each source's next document.
    """
    if len(shares) == 1:
        return 0
    weights = _integer_weights(tuple(shares))
    rate, total = sum(weights), sum(tokens_read)
    best, best_finish = -1, 0
    for i, weight in enumerate(weights):
        if tokens_read[i] * rate > weight * total:
            continue
        finish = tokens_read[i] + next_lengths[i]
        # compares finish / weight without a division
        if best < 0 or finish * weights[best] < best_finish * weight:
            best, best_finish = i, finish
    return best
