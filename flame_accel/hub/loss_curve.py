"""The loss curve of a run as a picture, for its model card.

All curves of a run, as a page for the browser, are drawn in `observe/report`.
"""

import io
from collections.abc import Mapping, Sequence

from flame_accel.observe.report import select_finite_points

CURVES = {"train/loss": ("training", "#2563eb"), "eval/loss": ("validation", "#dc2626")}
"""Key in the records, and name and colour of the curve."""
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 3.6, 120
FEW_POINTS = 50
"""Up to this number, each point of a curve has a dot."""
MAX_SPAN = 4.0
"""Above this ratio of the first losses to the last ones, the axis of the loss is logarithmic."""


def draw_png_or_none_if_no_finite_loss(records: Sequence[Mapping[str, float]]) -> bytes | None:
    """Training and validation loss over the steps.

    Args:
        records: The records of metrics.jsonl.

    Returns:
        A PNG, the same bytes for the same records; None if no record has a finite loss.
    """
    series = {key: points for key in CURVES if (points := select_finite_points(records, key))}
    if not series:
        return None
    # neither pyplot nor a display: another thread or notebook may use them
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, points in series.items():
        name, color = CURVES[key]
        steps, losses = zip(*points, strict=True)
        marker = "o" if len(points) <= FEW_POINTS else ""
        axes.plot(
            steps, losses, color=color, label=name, linewidth=1.6, marker=marker, markersize=3
        )
    losses = [loss for points in series.values() for _, loss in points]
    if min(losses) > 0 and max(losses) / min(losses) > MAX_SPAN:
        axes.set_yscale("log")
        # 4 rather than 4 x 10^0
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    # the version of matplotlib would be written into the file
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
