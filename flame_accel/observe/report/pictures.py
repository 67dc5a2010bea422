"""The charts of the report as pictures: for a paper, and for the card of a model."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flame_accel.files import write_bytes_atomically
from flame_accel.observe.report.chart_spec import build_picture_spec
from flame_accel.observe.report.charts import LOSS, build_charts, build_record_chart
from flame_accel.observe.report.read_runs import RunRecord, read_runs
from flame_accel.observe.report.vega import render_picture

WIDTH, HEIGHT = 520, 260
"""Of the plot in pixels, without the labels of the axes."""
PIXELS_OF_PNG = 2.0
"""For each pixel of a plot."""


def write_images(run_folders: Sequence[Path], folder: Path) -> list[Path]:
    """Writes each chart of one run, or of several in the same charts, as PNG and SVG.

    Args:
        run_folders: The run folders, in any state.
        folder: Where to; it is created.

    Returns:
        The paths of the pictures.

    Raises:
        OSError: A picture cannot be written.
        VegaError: Vega cannot be used here.
    """
    runs = read_runs(run_folders)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    names: set[str] = set()
    for chart in build_charts(runs):
        spec = build_picture_spec(chart, [run.name for run in runs], width=WIDTH, height=HEIGHT)
        name = _free_file_name(chart.kind.title, names)
        names.add(name)
        for format in ("png", "svg"):
            path = folder / f"{name}.{format}"
            write_bytes_atomically(path, render_picture(spec, format, scale=PIXELS_OF_PNG))
            written.append(path)
    return written


def _free_file_name(title: str, taken: Collection[str]) -> str:
    """What a title is as the name of a file, without suffix, unlike those that are taken."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "chart"
    return next(
        each
        for number in itertools.count(1)
        if (each := name if number == 1 else f"{name}-{number}") not in taken
    )


def render_loss_png(records: Sequence[Mapping[str, float]]) -> bytes | None:
    """The loss in training and validation over the steps.

    Args:
        records: The records of metrics.jsonl.

    Returns:
        A PNG, the same bytes for the same losses; None if no record has a finite loss.

    Raises:
        VegaError: Vega cannot be used here.
    """
    chart = build_record_chart(LOSS, [RunRecord(name="", records=records)])
    if not chart.series:
        return None
    spec = build_picture_spec(chart, [""], width=WIDTH, height=HEIGHT)
    return render_picture(spec, "png", scale=PIXELS_OF_PNG)
