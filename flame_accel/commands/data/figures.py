"""Figures of documents and rows: lengths, how tokens fill rows, how often a source is repeated.

Pure functions of lengths and traced rows; reading is done in `samples`, drawing in `observe`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flame_accel.commands.data.tracing import TracedRow


class Lengths(NamedTuple):
    """Lengths of documents in tokens; each but the mean is the length of a document."""

    least: int
    median: int
    mean: float
    most_of_90: int
    """At least 90% of the documents are so long or shorter ..."""
    most_of_99: int
    """... and 99%."""
    most: int


def describe_lengths(lengths: np.ndarray) -> Lengths:
    """Describes lengths, int [documents], at least one."""
    shares = (50, 90, 99)
    median, most_of_90, most_of_99 = np.percentile(lengths, shares, method="inverted_cdf")
    return Lengths(
        least=int(lengths.min()),
        median=int(median),
        mean=float(lengths.mean()),
        most_of_90=int(most_of_90),
        most_of_99=int(most_of_99),
        most=int(lengths.max()),
    )


class Bin(NamedTuple):
    """Documents of `low` to `high` tokens."""

    low: int
    high: int
    count: int


def bin_lengths(lengths: np.ndarray) -> list[Bin]:
    """Counts documents in bins from a power of two to the next, from the first to the last used.

    Args:
        lengths: Int [documents], each at least 1, at least one of them.
    """
    # n = m * 2**e with m in [0.5, 1), exactly
    exponents = np.frexp(lengths.astype(np.float64))[1] - 1
    first = int(exponents.min())
    counts = np.bincount(exponents - first).tolist()
    return [Bin(2**e, 2 ** (e + 1) - 1, count) for e, count in enumerate(counts, start=first)]


class Total(NamedTuple):
    """Tokens of a whole source."""

    tokens: float
    error: float = 0.0
    """Two standard errors of an estimate; 0: exact."""


def estimate_total(lengths: np.ndarray, num_read: int, num_records: int) -> Total:
    """Tokens of a source from an even sample of its records.

    Args:
        lengths: Int [documents]: the tokens of the documents among the records that were read.
        num_read: Records that were read, those without a document included.
        num_records: Records of the source.

    Returns:
        The mean times the number, with the standard error of a sample without replacement
        (Cochran, Sampling Techniques, 1977, section 2.6); records without a document count as 0.
    """
    per_record = np.zeros(num_read)
    per_record[: len(lengths)] = lengths
    tokens = float(per_record.mean()) * num_records
    if num_read == num_records:
        return Total(float(per_record.sum()))
    if num_read < 2:
        return Total(tokens, math.inf)
    spread = float(per_record.std(ddof=1)) / math.sqrt(num_read)
    return Total(tokens, 2 * num_records * spread * math.sqrt(1 - num_read / num_records))


class Packed(NamedTuple):
    """How documents fill rows."""

    rows: int
    tokens: int
    """Places in these rows."""
    targets: int
    """Tokens that the loss is for."""
    padding: int
    documents: int
    """Documents of which there is something in the rows."""
    documents_in_rows: int
    """The same, a document counted in each row that it is in."""
    cut: int
    """Documents that are in more than one piece, so that the state does not reach their end."""
    tokens_of_sources: list[int]
    """Tokens of each source; one that two pieces share (see `data.lanes.lane`) counts once."""


def describe_packing(rows: Sequence[TracedRow], num_sources: int) -> Packed:
    """Describes traced rows, at least one."""
    documents: set[tuple[int, int]] = set()
    cut: set[tuple[int, int]] = set()
    # numbers of the tokens of a lane and source, as the lane has read them
    numbers: dict[tuple[int, int], list[np.ndarray]] = {}
    padding = documents_in_rows = 0
    for row in rows:
        in_row = set()
        for piece in row.pieces:
            if piece.document is None:
                padding += len(piece.tokens)
                continue
            in_row.add((row.lane, piece.document))
            # a lone first token, for which a row had room, comes again with all the others
            if len(piece.tokens) < piece.length and piece.end > 1:
                cut.add((row.lane, piece.document))
            read = np.arange(piece.document + piece.offset, piece.document + piece.end)
            numbers.setdefault((row.lane, piece.source), []).append(read)
        documents |= in_row
        documents_in_rows += len(in_row)
    tokens_of_sources = [0] * num_sources
    for (_, source), read in numbers.items():
        tokens_of_sources[source] += len(np.unique(np.concatenate(read)))
    return Packed(
        rows=len(rows),
        tokens=sum(len(row.tokens) for row in rows),
        targets=sum(int(row.targets.sum()) for row in rows),
        padding=padding,
        documents=len(documents),
        documents_in_rows=documents_in_rows,
        cut=len(cut),
        tokens_of_sources=tokens_of_sources,
    )


class Use(NamedTuple):
    """What a run takes of a dataset."""

    share: float
    """Of the tokens of the mixture."""
    tokens: float
    """So many tokens in the whole run ..."""
    epochs: float | None
    """... are so many passes over the dataset; None: its size is not known."""


def plan_use(
    shares: Sequence[float], totals: Sequence[Total | None], packed: Packed, run_tokens: int
) -> list[Use]:
    """What a run takes of each dataset.

    Args:
        shares: Of the datasets in the tokens; their sum is 1.
        totals: Tokens of each dataset, where they are known.
        packed: How documents fill rows: a place in them is not always a token of its own.
        run_tokens: Places in all rows of the run.
    """
    tokens = run_tokens * sum(packed.tokens_of_sources) / packed.tokens
    return [
        # no tokens: a sample in which there was no document
        Use(
            share, tokens * share, tokens * share / total.tokens if total and total.tokens else None
        )
        for share, total in zip(shares, totals, strict=True)
    ]
