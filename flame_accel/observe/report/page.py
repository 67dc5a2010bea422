"""The page: the template filled with tables, charts and the JavaScript that draws them.

All text of a run is foreign: the template escapes it, and what the script reads is JSON in which no
tag can end. The look of the page is in `template/`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from flame_accel.config.secrets import mask_secrets
from flame_accel.files import write_text_atomically
from flame_accel.observe.report import tables
from flame_accel.observe.report.chart_spec import (
    DARK_COLORS,
    DASHES,
    FEW_POINTS,
    LIGHT_COLORS,
    build_base_spec,
)
from flame_accel.observe.report.charts import Chart, build_charts
from flame_accel.observe.report.curves import Curve
from flame_accel.observe.report.read_runs import RunRecord, read_run, read_runs
from flame_accel.observe.report.vega import VegaError, load_javascript

REPORT_FILE = "report.html"
MOST_SAMPLES = 12
"""Of a run."""
SECTION_TITLES = {
    "training": "Training",
    "evaluation": "Evaluation",
    "position": "Evaluation by position",
    "speed": "Speed and memory",
    "data": "Data",
    "other": "Other measurements",
}
"""Sections of charts, in the order of the page."""


def write_report(run_folder: Path, *, title: str, end_recorded_in: Path | None = None) -> Path:
    """Writes the report of a run into its folder.

    Args:
        run_folder: The run folder, in any state.
        title: Heading of the page.
        end_recorded_in: The folder with ended.json; the run folder if None.

    Returns:
        Path of the page.

    Raises:
        OSError: The page cannot be written.
    """
    path = run_folder / REPORT_FILE
    write_text_atomically(
        path, render_page([read_run(run_folder, end_recorded_in=end_recorded_in)], title=title)
    )
    return path


def write_page(
    run_folders: Sequence[Path],
    output: Path,
    *,
    title: str | None = None,
    reload_seconds: float = 0,
) -> None:
    """Writes the report of one run or several side by side.

    Args:
        run_folders: The run folders, in any state.
        output: Path of the page; its folder is created.
        title: Heading of the page; None: that of `title_run`, or the number of runs.
        reload_seconds: Interval in which the page loads itself again; 0: never.

    Raises:
        OSError: The page cannot be written.
    """
    runs = read_runs(run_folders)
    if not title:
        described = str(runs[0].options.get("job.description", ""))
        title = title_run(described, runs[0].name) if len(runs) == 1 else f"{len(runs)} runs"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(output, render_page(runs, title=title, reload_seconds=reload_seconds))


def title_run(description: str, name: str) -> str:
    """The heading of a run's page: its folder's name tells variants of a recipe apart."""
    return f"{description} \u00b7 {name}" if description and description != name else name


def render_page(runs: Sequence[RunRecord], *, title: str, reload_seconds: float = 0) -> str:
    """The page of some runs as HTML.

    Args:
        runs: At least one.
        title: Heading of the page.
        reload_seconds: Interval in which the page loads itself again; 0: never.
    """
    # it takes as long to import as the rest of the report to be made
    import jinja2

    charts = build_charts(runs)
    try:
        javascript, problem = load_javascript().replace("</script", r"<\/script"), ""
    except VegaError as error:
        javascript, problem = "", f"The charts are not drawn: {error}."
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read_template("page.html"))
    page = template.render(
        title=title,
        runs=runs,
        made_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        problems=[f"{run.name}: {text}" for run in runs for text in run.problems]
        + ([problem] if problem else []),
        status=[tables.describe_status(run) for run in runs],
        figures=tables.list_figures(runs),
        differing_options=tables.list_differing_options(runs) if len(runs) > 1 else [],
        evaluations=tables.list_evaluation_tables(runs),
        sections=[
            (name, heading, [n for n, chart in enumerate(charts) if chart.kind.section == name])
            for name, heading in SECTION_TITLES.items()
        ],
        charts=charts,
        events=[tables.list_events(run) for run in runs],
        samples=[_list_samples(run) for run in runs],
        environment=tables.list_environment(runs),
        colors=LIGHT_COLORS,
        reload_seconds=f"{reload_seconds:g}" if reload_seconds else "",
    )
    page = mask_secrets(page)
    data = json.dumps(_list_data(runs, charts), allow_nan=False, separators=(",", ":"))
    # no text of a run has these marks, since it has no tags
    for mark, content in (
        ("<!--style-->", _read_template("page.css")),
        ("<!--vega-->", javascript),
        ("<!--script-->", _read_template("page.js")),
        ("<!--data-->", mask_secrets(data).replace("<", r"\u003c")),
    ):
        page = page.replace(mark, content, 1)
    return page


def _read_template(name: str) -> str:
    return (files("flame_accel.observe.report") / "template" / name).read_text("utf-8")


def _list_samples(run: RunRecord) -> list[dict[str, Any]]:
    """The samples of the last evaluation that has some, of each name."""
    last = {}
    for evaluation in run.evaluations:
        if evaluation.samples:
            last[evaluation.name] = evaluation
    return [
        {"name": name, "step": evaluation.step, **sample}
        for name, evaluation in last.items()
        for sample in evaluation.samples
    ][:MOST_SAMPLES]


def _list_data(runs: Sequence[RunRecord], charts: Sequence[Chart]) -> dict[str, Any]:
    """What the script of the page reads."""
    return {
        "runs": [
            {
                "name": run.name,
                "axes": run.x_axes,
                "starts": [int(start["step"]) for start in run.starts[1:]],
                "skipped": [int(each["step"]) for each in run.skipped][: tables.MOST_EVENTS],
            }
            for run in runs
        ],
        "charts": [_list_chart(chart) for chart in charts],
        "spec": build_base_spec(),
        "colors": {"light": LIGHT_COLORS, "dark": DARK_COLORS},
        "dashes": DASHES,
        "fewPoints": FEW_POINTS,
    }


def _list_chart(chart: Chart) -> dict[str, Any]:
    kind = chart.kind
    return {
        "title": kind.title,
        "unit": kind.unit,
        "format": kind.format,
        "zero": kind.starts_at_zero,
        "smooth": kind.can_be_smoothed,
        "logY": kind.log_y,
        "xUnit": chart.x_unit,
        "series": [
            {
                "run": series.run,
                "name": series.name,
                "color": series.color,
                "dash": series.dash,
                **_list_curve(series.curve),
            }
            for series in chart.series
        ],
        "ranges": chart.ranges,
        "marks": chart.x_marks,
    }


def _list_curve(curve: Curve) -> Mapping[str, Any]:
    listed: dict[str, Any] = {"x": curve.steps, "y": curve.values, "gaps": curve.gaps}
    return listed if curve.low is None else listed | {"low": curve.low, "high": curve.high}
