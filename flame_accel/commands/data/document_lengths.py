"""Statistics of document lengths in tokens: as text with a histogram, and as a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.files import write_bytes_atomically

BAR_WIDTH = 40
"""Longest bar of the text histogram, in characters."""


class LengthStatistics(NamedTuple):
    """Lengths of documents in tokens; each except the mean is the length of a document."""

    minimum: int
    median: int
    mean: float
    percentile_90: int
    percentile_99: int
    maximum: int


class LengthBin(NamedTuple):
    """Documents of `low` to `high` tokens."""

    low: int
    high: int
    count: int


def compute_length_statistics(lengths: np.ndarray) -> LengthStatistics:
    """Statistics of lengths, int [documents], of at least one document."""
    shares = (50, 90, 99)
    median, percentile_90, percentile_99 = np.percentile(lengths, shares, method="inverted_cdf")
    return LengthStatistics(
        minimum=int(lengths.min()),
        median=int(median),
        mean=float(lengths.mean()),
        percentile_90=int(percentile_90),
        percentile_99=int(percentile_99),
        maximum=int(lengths.max()),
    )


def count_lengths_by_power_of_two(lengths: np.ndarray) -> list[LengthBin]:
    """Count documents per power of two, from the first to the last bin that holds any.

    Args:
        lengths: int [documents], each at least 1, of at least one document.
    """
    # n = m * 2**e with m in [0.5, 1), exactly
    exponents = np.frexp(lengths.astype(np.float64))[1] - 1
    first = int(exponents.min())
    counts = np.bincount(exponents - first).tolist()
    return [LengthBin(2**e, 2 ** (e + 1) - 1, count) for e, count in enumerate(counts, first)]


def format_length_statistics_and_histogram(
    lengths: np.ndarray, cut_lengths_by_name: Mapping[str, int]
) -> Iterator[str]:
    """Lines for the lengths of documents.

    Args:
        lengths: int [documents], in tokens, of at least one document.
        cut_lengths_by_name: by name, lengths in tokens; the lines say how many documents are
            longer.
    """
    statistics = compute_length_statistics(lengths)
    yield (
        f"lengths    median {statistics.median:,}, mean {statistics.mean:,.1f}, "
        f"{statistics.minimum:,} to {statistics.maximum:,} tokens"
    )
    yield (
        f"           90% have at most {statistics.percentile_90:,}, "
        f"99% at most {statistics.percentile_99:,}"
    )
    for name, limit in cut_lengths_by_name.items():
        longer = int((lengths > limit).sum())
        yield f"           {longer:,} ({longer / len(lengths):.1%}) longer than {name}, {limit:,}"
    yield from format_histogram(count_lengths_by_power_of_two(lengths))


def format_histogram(bins: Sequence[LengthBin]) -> Iterator[str]:
    """A line with a bar for each bin; the bar has at least one character if any document does."""
    highest = max(bin.count for bin in bins)
    for low, high, count in bins:
        bar = "#" * -(-count * BAR_WIDTH // highest)
        yield f"{low:>11,} - {high:<11,} {count:>9,} {bar}".rstrip()


def save_histogram_png(
    path: Path, lengths: Mapping[str, np.ndarray], cut_lengths_by_name: Mapping[str, int]
) -> None:
    """Save a PNG with the distribution of document lengths in each dataset, on a log axis.

    Args:
        path: of the PNG; its folder is created.
        lengths: by dataset, int [documents], in tokens, of at least one document.
        cut_lengths_by_name: by name, lengths in tokens to mark.

    Raises:
        UserError: Vega, which draws it, cannot be used here.
    """
    from flame_accel.observe.report import VegaError, render_picture

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture = render_picture(_histogram_spec(lengths, cut_lengths_by_name), "png", scale=2)
    except VegaError as error:
        raise UserError(
            f"the picture cannot be drawn: {error}",
            where="--output",
            remedy="pip install vl-convert-python, or leave --output out",
        ) from error
    write_bytes_atomically(path, picture)


def _histogram_spec(
    lengths: Mapping[str, np.ndarray], cut_lengths_by_name: Mapping[str, int]
) -> dict[str, Any]:
    """The histogram of `save_histogram_png` in Vega-Lite."""
    low = min(int(values.min()) for values in lengths.values())
    high = max(int(values.max()) for values in lengths.values())
    edges = np.geomspace(low, high + 1, 49)
    shares = [
        {"length": length, "share": share, "name": name}
        for name, values in lengths.items()
        for length, share in zip(
            edges.tolist(),
            [*(np.histogram(values, edges)[0] / len(values)).tolist(), 0.0],
            strict=True,
        )
    ]
    cuts = [{"length": length, "name": name} for name, length in cut_lengths_by_name.items()]
    x = {
        "field": "length",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "title": "tokens in a document",
        "axis": {"grid": False, "format": "~s"},
    }
    y = {
        "field": "share",
        "type": "quantitative",
        "title": "share of the documents",
        "axis": {"format": "~%"},
    }
    named = {"field": "name", "type": "nominal", "title": None}
    return {
        "width": 560,
        "height": 280,
        "background": "white",
        "padding": 10,
        "layer": [
            {
                "data": {"values": shares},
                "mark": {"type": "line", "interpolate": "step-after"},
                "encoding": {"x": x, "y": y, "color": {**named, "sort": None}},
            },
            {
                "data": {"values": cuts},
                "mark": {"type": "rule"},
                "encoding": {"x": x, "strokeDash": named},
            },
        ],
    }
