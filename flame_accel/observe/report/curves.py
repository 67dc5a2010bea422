"""Curves of a run: the values of one key of metrics.jsonl over the steps, and the other x axes.

A long run is thinned: of each bin its mean, its lowest and its highest value are kept, so that no
spike is lost. Values that are not finite leave a gap, and a mark where it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

MOST_GAP_MARKS = 100
AXIS_POINTS = 400
"""Points between which the x axes other than the step are interpolated."""


@dataclass(frozen=True)
class Curve:
    """Values of one key over the steps; all sequences but `gaps` have the same length."""

    steps: Sequence[float]
    values: Sequence[float | None]
    """Of a step, or means of a bin; None where none is finite."""
    low: Sequence[float | None] | None
    """Lowest values of the bins; None for a curve that is not thinned."""
    high: Sequence[float | None] | None
    gaps: Sequence[float]
    """Steps with a value that is not finite; the first `MOST_GAP_MARKS` of them."""
    last: float
    """The last value that was recorded, finite or not."""


class XAxes(TypedDict):
    """The same points of a run on each x axis, in ascending order; empty: not known."""

    step: list[float]
    tokens: list[float]
    seconds: list[float]
    """Of training: without evaluations, checkpoints and the time between starts."""
    flops: list[float]


def extract_curve(
    records: Sequence[Mapping[str, float]], key: str, *, most_points: int
) -> Curve | None:
    """The curve of a key, thinned to at most `most_points`; None if no value is finite."""
    pairs = [(record["step"], record[key]) for record in records if key in record]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    if not finite.any():
        return None
    gaps: list[float] = steps[~finite][:MOST_GAP_MARKS].tolist()
    last = float(values[-1])
    if len(steps) <= most_points:
        return Curve(_all_short(steps, digits=9), _all_short(values), None, None, gaps, last)
    # the first and the last value are bins of their own
    inner = np.linspace(1, len(steps) - 1, max(most_points, 3) - 1).astype(int)
    starts = np.unique(np.concatenate([[0], inner]))
    counts = np.add.reduceat(finite, starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(np.where(finite, values, 0.0), starts) / counts
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    middles = np.add.reduceat(steps, starts) / np.diff([*starts, len(steps)])
    return Curve(
        _all_short(middles.round(), digits=9),
        *(_all_short(each) for each in (means, low, high)),
        gaps=gaps,
        last=last,
    )


def measure_x_axes(records: Sequence[Mapping[str, float]]) -> XAxes:
    """Tokens, seconds and FLOPs of training at some steps of a run.

    FLOPs are the tokens times the FLOPs of one, as the meter counts them for the throughput.
    """
    axes = XAxes(step=[], tokens=[], seconds=[], flops=[])
    rows: list[tuple[float, float, float]] = []
    seconds, before = 0.0, 0.0
    costs = []
    for record in records:
        step, tokens = record["step"], record.get("tokens", math.nan)
        # an evaluation at the end has a record without a training step
        taken = record.get("time/step_seconds", 0.0)
        seconds += max(step - before, 0.0) * (taken if math.isfinite(taken) else 0.0)
        rate = record.get("throughput/tokens_per_second_per_device", math.nan)
        tflops = record.get("throughput/tflops_per_device", math.nan)
        if rate > 0 and math.isfinite(tflops):
            costs.append(tflops * 1e12 / rate)
        if step > before:
            rows.append((step, tokens, seconds))
        before = max(step, before)
    if not rows:
        return axes
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), AXIS_POINTS)).astype(int))
    table = np.array(rows, dtype=np.float64)[chosen]
    axes["step"] = _all_short(table[:, 0], digits=9)
    if np.isfinite(table[:, 1]).all():
        axes["tokens"] = _all_short(table[:, 1], digits=9)
        if costs:
            axes["flops"] = _all_short(table[:, 1] * float(np.median(costs)), digits=6)
    if seconds:
        axes["seconds"] = _all_short(table[:, 2], digits=6)
    return axes


def last_finite(records: Sequence[Mapping[str, float]], key: str) -> float | None:
    """The last finite value of a key."""
    return next((v for r in reversed(records) if math.isfinite(v := r.get(key, math.nan))), None)


def median_tokens_per_second(records: Sequence[Mapping[str, float]]) -> float | None:
    """The speed of a run in words and tables: the median of its records, of all devices."""
    return median(records, "throughput/tokens_per_second")


def median(records: Sequence[Mapping[str, float]], key: str) -> float | None:
    """The median of the finite values of a key."""
    values = [value for r in records if math.isfinite(value := r.get(key, math.nan))]
    return float(np.median(values)) if values else None


def _all_short(values: np.ndarray, digits: int = 5) -> list[Any]:
    return [_short(value, digits) for value in values.tolist()]


def _short(value: float, digits: int = 5) -> float | None:
    """A number with few digits, as an int where it is one; None if it is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    # "1.0" takes more of the page than "1"
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
