"""How a chart looks, in Vega-Lite: the same on the page and in a picture.

The page fills the datasets, domains and colours itself (`template/page.js`), so that the reader can
choose the axes; `fill_in` does it for a picture.
"""

from collections.abc import Sequence
from typing import Any

from flame_accel.observe.report.charts import LARGE, NUMBER, SHARE, Chart
from flame_accel.observe.report.vega import VegaLiteSpec

LIGHT_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C99", "#6B6B6B"),
)
"""Of Okabe and Ito, which people with any kind of colour vision can tell apart; and two more."""
DARK_COLORS = (
    *("#5BB5F0", "#FF8A4C", "#35C99A", "#EBA3C8", "#F5BD4F", "#A6D8F7", "#B79BD6", "#B0B0B0"),
)
"""The same hues, lighter, for a dark background."""
DASHES = ([1, 0], [5, 3], [1.5, 2.5], [7, 3, 1.5, 3])
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FEW_POINTS = 40
"""Up to this number, each point of a curve has a dot."""
PLAIN_NUMBER = "abs(datum.value) >= 1e-3 && abs(datum.value) < 1e6"
"""Of which numbers an axis shows all digits; others may have a power of ten."""
WIDE_SPAN = 4.0
"""Above this ratio of the values of a loss, the axis of a picture is logarithmic."""


def build_base_spec() -> VegaLiteSpec:
    """A chart without its data: datasets `lines`, `raw`, `gaps`, `events` and `labels`.

    Rows of `lines` have `x`, `y` and `series`, and `low` and `high` where they are means of bins;
    `raw` has what was there before smoothing. Rows of `labels` have a `text`, and in `y` pixels.
    """
    x = {"field": "x", "type": "quantitative", "title": None, "scale": {"nice": False}}
    y = {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}}
    series = {"field": "series", "type": "nominal", "legend": None}
    color = {**series, "scale": {"domain": [], "range": []}}
    dash = {**series, "scale": {"domain": [], "range": []}}
    at = {"x": x, "color": color}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "datasets": {name: [] for name in ("lines", "points", "raw", "gaps", "events", "labels")},
        "layer": [
            {
                "data": {"name": "events"},
                "mark": {"type": "rule", "strokeWidth": 1, "strokeDash": [2, 3], "opacity": 0.55},
                "encoding": {
                    "x": x,
                    "color": {"field": "color", "type": "nominal", "scale": None},
                },
            },
            {
                "data": {"name": "lines"},
                "mark": {"type": "area", "opacity": 0.2, "clip": True},
                "encoding": {**at, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"name": "raw"},
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.25, "clip": True},
                "encoding": {**at, "y": y, "strokeDash": dash},
            },
            {
                "data": {"name": "lines"},
                "mark": {"type": "line", "clip": True},
                "encoding": {**at, "y": y, "strokeDash": dash},
            },
            {
                "data": {"name": "points"},
                # all are within the axes; at an end of them half a point is too little to see
                "mark": {"type": "point", "filled": True, "size": 22, "opacity": 1},
                "encoding": {**at, "y": y},
            },
            {
                "data": {"name": "gaps"},
                "mark": {"type": "text", "text": "\u00d7", "fontSize": 13, "fontWeight": "bold"},
                "encoding": {**at, "y": {"value": {"expr": "height - 6"}}},
            },
            {
                "data": {"name": "labels"},
                "mark": {"type": "text", "align": "left", "dx": 7, "fontSize": 11},
                "encoding": {
                    "x": x,
                    "y": {"field": "y", "type": "quantitative", "scale": None, "axis": None},
                    "text": {"field": "text"},
                    "color": color,
                },
            },
        ],
        "config": {
            "font": FONT,
            "background": "transparent",
            "view": {"stroke": None},
            "mark": {"invalid": "break-paths-show-path-domains"},
            "line": {"strokeWidth": 1.8, "strokeJoin": "round", "strokeCap": "butt"},
            "axis": {
                "labelFontSize": 11,
                "titleFontSize": 11,
                "titleFontWeight": "normal",
                "titlePadding": 8,
                "ticks": False,
                "labelPadding": 6,
                "domain": False,
                "gridWidth": 1,
            },
            "axisX": {"grid": False, "domain": True, "ticks": True, "tickSize": 4},
        },
    }


def build_picture_spec(
    chart: Chart, run_names: Sequence[str], *, width: int, height: int
) -> VegaLiteSpec:
    """A chart with its data over the steps, for a picture on white, as in a paper.

    Args:
        chart: The chart.
        run_names: Of all runs; with several, they are the names of the curves.
        width: Of the plot in pixels, without the axis labels.
        height: The same.
    """
    spec = build_base_spec()
    names = [_name_in_picture(series.name, run_names, series.run) for series in chart.series]
    datasets = _list_rows(chart, names)
    values = [row["y"] for row in datasets["lines"] if row["y"] is not None]
    is_wide = "loss" in chart.kind.title.lower() and _spans(values, WIDE_SPAN)
    scale: dict[str, Any] = {"type": "log" if is_wide else "linear"}
    scale["zero"] = chart.kind.starts_at_zero
    is_share = chart.kind.format == SHARE and not chart.kind.starts_at_zero
    if is_share and len(set(values)) == 1 and 0 <= values[0] <= 1:
        scale["domain"] = [0, 1]
    legend = {"title": None, "orient": "top-right", "symbolType": "stroke", "symbolStrokeWidth": 2}
    styles = {
        "color": [LIGHT_COLORS[each.color % len(LIGHT_COLORS)] for each in chart.series],
        "strokeDash": [DASHES[each.dash % len(DASHES)] for each in chart.series],
    }
    for layer in spec["layer"]:
        for channel, encoding in layer["encoding"].items():
            if channel in styles and encoding.get("scale") is not None:
                encoding["scale"] = {"domain": names, "range": styles[channel]}
                encoding["legend"] = legend if len(names) > 1 else None
            elif channel == "x" and "field" in encoding:
                encoding["title"] = chart.x_unit or "step"
                encoding["axis"] = {"labelExpr": f"format(datum.value, '{LARGE}')", "tickCount": 6}
            elif channel == "y" and encoding.get("scale", 0) is not None and "field" in encoding:
                encoding["title"] = chart.kind.unit or chart.kind.title
                encoding["scale"] = scale
                number = f"format(datum.value, '{chart.kind.format}')"
                if chart.kind.format == NUMBER:
                    plain = "format(datum.value, ',.6~r')"
                    number = f"{PLAIN_NUMBER} ? {plain} : {number}"
                encoding["axis"] = {"labelExpr": number, "tickCount": 5}
    return {
        **spec,
        "datasets": datasets,
        "width": width,
        "height": height,
        "background": "white",
        "padding": 10,
    }


def _name_in_picture(name: str, run_names: Sequence[str], run: int) -> str:
    if len(run_names) == 1:
        return name
    return run_names[run] if name == "training" else f"{run_names[run]}, {name}"


def _list_rows(chart: Chart, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The datasets of `build_base_spec`."""
    rows: dict[str, list[dict[str, Any]]] = {"lines": [], "points": [], "gaps": []}
    for series, name in zip(chart.series, names, strict=True):
        curve = series.curve
        low, high = curve.low or [None] * len(curve.steps), curve.high or [None] * len(curve.steps)
        of_curve = [
            {"x": x, "y": y, "low": below, "high": above, "series": name}
            for x, y, below, above in zip(curve.steps, curve.values, low, high, strict=True)
        ]
        rows["lines"] += of_curve
        if len(of_curve) <= FEW_POINTS:
            rows["points"] += of_curve
        rows["gaps"] += [{"x": x, "series": name} for x in curve.gaps]
    events = [{"x": x, "color": "#6B6B6B"} for x in chart.x_marks]
    return rows | {"raw": [], "events": events, "labels": []}


def _spans(values: Sequence[float], ratio: float) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > ratio
