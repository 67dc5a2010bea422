"""Which charts a report has: their titles, units and curves, made of the keys of the records.

A key that is not known here gets a chart too. How a chart looks is in `chart_spec`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flame_accel.config.evaluation_sets import MAIN_SET
from flame_accel.observe.evaluations_file import Evaluation
from flame_accel.observe.report.curves import Curve, extract_curve
from flame_accel.observe.report.read_runs import RunRecord

MOST_POINTS, FEWEST_POINTS = 1000, 20
"""Of a curve."""
MOST_POINTS_IN_ALL = 20_000
"""Of all curves of a page, so that it stays small."""
NUMBER, LARGE, SHARE = "~g", "~s", "~%"
"""Formats of an axis, as d3 has them."""
Section = Literal["training", "speed", "evaluation", "position", "data", "other"]

MOST_TITLE = 100
"""Characters of a title; the rest is cut."""


@dataclass(frozen=True)
class ChartKind:
    """What a chart of the records shows."""

    title: str
    unit: str
    """Title of the y axis."""
    keys: Mapping[str, str]
    """Keys of the records, and names of their curves."""
    section: Section = "training"
    format: str = NUMBER
    starts_at_zero: bool = False
    can_be_smoothed: bool = False
    log_y: bool = False
    """Whether the y axis is logarithmic at first; it can be for any chart."""

    def __post_init__(self) -> None:
        # a name of a user's metric may have any characters; Vega reads titles as code,
        # in which a line break is an error and a backslash an escape
        title = " ".join(self.title.replace("\\", "/").split())
        object.__setattr__(self, "title", title[:MOST_TITLE])


@dataclass(frozen=True)
class Series:
    """A curve of a chart."""

    run: int
    """Index of the run."""
    name: str
    """Of the curve within its run, such as `validation`."""
    color: int
    """Index of the colour."""
    dash: int
    """Index of the line's style."""
    curve: Curve


@dataclass(frozen=True)
class Chart:
    """A chart with its curves."""

    kind: ChartKind
    series: Sequence[Series]
    x_unit: str | None = None
    """Title of the x axis; None: steps, or what the reader chooses instead."""
    ranges: Sequence[Sequence[tuple[float, float]]] = field(default_factory=list)
    """Of each series, the bin on the x axis of each value, where there are bins: from, up to."""
    x_marks: Sequence[float] = ()
    """Places on the x axis to mark: the lengths of the contexts in training."""


LOSS = ChartKind(
    "Loss",
    "nats per token",
    {"train/loss": "training", "eval/loss": "validation"},
    can_be_smoothed=True,
)
KNOWN = (
    LOSS,
    ChartKind("Learning rate", "", {"optimizer/lr": "learning rate"}, starts_at_zero=True),
    ChartKind(
        "Gradient norm",
        "before clipping",
        {"optimizer/grad_norm": "gradient norm"},
        can_be_smoothed=True,
        log_y=True,
    ),
    ChartKind(
        "Throughput",
        "tokens per second",
        {"throughput/tokens_per_second": "all devices"},
        section="speed",
        format=LARGE,
        starts_at_zero=True,
        can_be_smoothed=True,
    ),
    ChartKind(
        "Model FLOPs utilization",
        "share of the peak",
        {"throughput/mfu": "MFU"},
        section="speed",
        format=SHARE,
        starts_at_zero=True,
        can_be_smoothed=True,
    ),
    ChartKind(
        "Peak memory",
        "GiB per device",
        {"memory/peak_gib": "peak"},
        section="speed",
        starts_at_zero=True,
    ),
    ChartKind(
        "Time of a step",
        "seconds",
        {"time/step_seconds": "step", "time/data_seconds": "waiting for data"},
        section="speed",
        starts_at_zero=True,
        can_be_smoothed=True,
    ),
    ChartKind(
        "Time of a checkpoint",
        "seconds",
        {"checkpoint/stall_seconds": "training waits", "checkpoint/write_seconds": "writing"},
        section="speed",
        starts_at_zero=True,
    ),
)
EVALUATION_METRICS = {
    "loss": ("Validation loss", "nats per token", NUMBER),
    "perplexity": ("Perplexity", "", NUMBER),
    "bits_per_byte": ("Bits per byte", "bits", NUMBER),
    "accuracy": ("Accuracy", "of the targets", SHARE),
    "answer_accuracy": ("Accuracy of the answers", "whole answers", SHARE),
}
NOT_DRAWN = {
    "step",
    "tokens",
    "epoch",
    "train/max_loss",
    "optimizer/skipped_steps",
    "throughput/tokens_per_second_per_device",
    "throughput/tflops_per_device",
}
"""Keys that say the same as another one, or that are written rather than drawn."""
SOURCE_SHARE = "data/share/"
"""Beginning of the keys with the share that a source has of the tokens."""


def build_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The charts of one run, or of several in the same charts, in the order of the page."""
    kinds = list(list_chart_kinds(runs))
    several = len(runs) > 1
    if several:
        kinds = [each for kind in kinds for each in _one_key_each(kind)]
    number = sum(key in run.keys for kind in kinds for key in kind.keys for run in runs)
    points = min(max(MOST_POINTS_IN_ALL // max(number, 1), FEWEST_POINTS), MOST_POINTS)
    charts = [build_record_chart(kind, runs, most_points=points) for kind in kinds]
    charts += _build_position_charts(runs)
    return [chart for chart in charts if chart.series]


def list_chart_kinds(runs: Sequence[RunRecord]) -> Iterator[ChartKind]:
    """What the charts of the records of some runs show; some may turn out to be empty."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    yield from KNOWN
    by_metric: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.startswith("eval/"):
            name, _, metric = key.removeprefix("eval/").rpartition("/")
            by_metric.setdefault(metric, {})[key] = name or "validation"
    for metric, named in by_metric.items():
        if named.keys() <= {"eval/loss"}:
            continue
        title, unit, format = EVALUATION_METRICS.get(metric, (metric, "", NUMBER))
        yield ChartKind(title, unit, named, section="evaluation", format=format)
    shares = {key: key.removeprefix(SOURCE_SHARE) for key in keys if key.startswith(SOURCE_SHARE)}
    if shares:
        yield ChartKind(
            *("Mixture of the data", "share of the tokens", shares),
            section="data",
            format=SHARE,
            starts_at_zero=True,
        )
    drawn = NOT_DRAWN.union(*(kind.keys for kind in KNOWN), shares)
    for key in keys:
        if key not in drawn and not key.startswith("eval/"):
            yield ChartKind(key, "", {key: key}, section="other")


def _one_key_each(kind: ChartKind) -> list[ChartKind]:
    """Charts of one curve for each run, where a run has several: lines must be told apart."""
    if kind is LOSS or len(kind.keys) == 1:
        return [kind]
    if kind.section == "speed":
        # waiting for data is seldom visible next to the step
        kept = dict(list(kind.keys.items())[:1])
        return [ChartKind(**{**vars(kind), "keys": kept})]
    return [
        ChartKind(**{**vars(kind), "title": f"{kind.title}: {name}", "keys": {key: name}})
        for key, name in kind.keys.items()
    ]


def build_record_chart(
    kind: ChartKind, runs: Sequence[RunRecord], *, most_points: int = MOST_POINTS
) -> Chart:
    """A chart of the records of some runs, each curve with at most `most_points`."""
    several = len(runs) > 1
    series = []
    for index, run in enumerate(runs):
        for number, (key, name) in enumerate(kind.keys.items()):
            curve = extract_curve(run.records, key, most_points=most_points)
            if curve is not None:
                color, dash = (index, number) if several else (number, 0)
                series.append(Series(index, name, color, dash, curve))
    return Chart(kind, series)


def _build_position_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """For each set and metric, the last evaluation by position in the context."""
    last: dict[tuple[str, str], dict[int, Evaluation]] = {}
    for index, run in enumerate(runs):
        for evaluation in sorted(run.evaluations, key=lambda each: each.step):
            for metric in evaluation.by_position:
                last.setdefault((evaluation.name, metric), {})[index] = evaluation
    trained_lengths = sorted(set(filter(None, map(_trained_length, runs))))
    x_unit = "position (tokens" + ("; dotted: trained length)" if trained_lengths else ")")
    charts = []
    for (name, metric), evaluations in last.items():
        if metric == "edges":
            continue
        title, unit, format = EVALUATION_METRICS.get(metric, (metric, "", NUMBER))
        title = title.removeprefix("Validation ").capitalize() + " by position"
        if name != MAIN_SET:
            title += f": {name}"
        series, ranges = [], []
        for index, evaluation in evaluations.items():
            edges, values = evaluation.by_position.get("edges", []), evaluation.by_position[metric]
            if len(edges) != len(values) + 1 or not all(map(math.isfinite, edges)):
                continue
            has_targets = _list_ranges_with_targets(evaluation, len(values))
            kept = [n for n, has in enumerate(has_targets) if has]
            if not kept:
                continue
            values = [values[n] for n in kept]
            middles = [(edges[n] + edges[n + 1]) / 2 for n in kept]
            drawn = [value if math.isfinite(value) else None for value in values]
            gaps = [x for x, value in zip(middles, drawn, strict=True) if value is None]
            curve = Curve(middles, drawn, None, None, gaps, values[-1])
            series.append(Series(index, f"step {evaluation.step:,}", index, 0, curve))
            ranges.append([(edges[n], edges[n + 1]) for n in kept])
        kind = ChartKind(title, unit, {}, section="position", format=format)
        charts.append(Chart(kind, series, x_unit, ranges, trained_lengths))
    return charts


def _list_ranges_with_targets(evaluation: Evaluation, count: int) -> list[bool]:
    """Which of the ranges of positions have targets, of which the others have no figures.

    The share of the targets that are right is finite wherever there are any, also if their loss is
    not. Without it, a range has none if no figure of it is known.
    """
    by_position = evaluation.by_position
    right = by_position.get("accuracy")
    if right is not None and len(right) == count:
        return [math.isfinite(value) for value in right]
    return [True] * count


def _trained_length(run: RunRecord) -> float | None:
    """Tokens in the longest context of training."""
    values = (run.options.get(f"training.{name}") for name in ("context_len", "seq_len"))
    return next((value for value in values if isinstance(value, int) and value > 0), None)
