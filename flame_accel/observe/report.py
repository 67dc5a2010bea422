"""report.html: the curves of a run on one self-contained page, drawn from metrics.jsonl.

No script and no network: the curves are inline SVG, so that the file can be mailed, archived and
opened anywhere.
"""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from flame_accel.config.secrets import mask_secrets
from flame_accel.files import write_text_atomically
from flame_accel.observe.metrics_file import METRICS_FILE, read_records

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 28
CURVES = (
    ("Loss (nats per target token)", ("train/loss", "eval/loss")),
    ("Learning rate", ("optimizer/lr",)),
    ("Gradient norm before clipping", ("optimizer/grad_norm",)),
    ("Tokens per second", ("throughput/tokens_per_second",)),
    ("Peak memory (GiB)", ("memory/peak_gib",)),
)
COLORS = ("#2563eb", "#dc2626")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 700px; margin: 2em auto; padding: 0 1em;
color: #1f2937 } h2 { font-size: 1em; margin: 2em 0 .3em } table { border-collapse: collapse }
td { padding: .15em 1.5em .15em 0 } td + td { font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } text { font: 11px system-ui, sans-serif; fill: #6b7280 }
pre { background: #f3f4f6; padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere }
"""


StepAndValue = tuple[float, float]


def write_report(run_folder: Path, *, title: str, sample: str = "") -> Path:
    """Draws `metrics.jsonl` of a run folder into its `report.html`.

    Args:
        run_folder: Folder with metrics.jsonl and, if it exists, config.toml.
        title: Heading of the page.
        sample: Text that the exported model generated; empty omits it.

    Returns:
        Path of the page.
    """
    title, sample = mask_secrets(title), mask_secrets(sample)
    records = read_records(run_folder / METRICS_FILE)
    body = [f"<h1>{html.escape(title)}</h1>", _render_last_values_html(records)]
    for heading, keys in CURVES:
        series = {key: points for key in keys if (points := select_finite_points(records, key))}
        if series:
            body += [f"<h2>{html.escape(heading)}</h2>", render_curves_svg(series)]
    if sample:
        body += ["<h2>A sample of the exported model</h2>", f"<pre>{html.escape(sample)}</pre>"]
    config = run_folder / "config.toml"
    if config.exists():
        text = html.escape(config.read_text(encoding="utf-8"))
        body += ["<h2>Options</h2>", f"<details><summary>all</summary><pre>{text}</pre></details>"]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n" + "\n".join(body) + "\n"
    )
    path = run_folder / "report.html"
    write_text_atomically(path, page)
    return path


def select_finite_points(records: Sequence[Mapping[str, float]], key: str) -> list[StepAndValue]:
    """(step, value) of every record with a finite value of `key`."""
    return [
        (record["step"], record[key])
        for record in records
        if math.isfinite(record.get(key, math.nan))
    ]


def render_curves_svg(series: Mapping[str, Sequence[StepAndValue]]) -> str:
    """One SVG chart with a line for each series of (step, value)."""
    points = [point for values in series.values() for point in values]
    low_x, high_x = _axis_limits([x for x, _ in points])
    low_y, high_y = _axis_limits([y for _, y in points])

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = low_y + share * (high_y - low_y)
        _, down = to_pixels(low_x, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" stroke="#e5e7eb"/>'
            f'<text x="{LEFT - 6}" y="{down + 4}" text-anchor="end">{y:.4g}</text>'
        )
        x = low_x + share * (high_x - low_x)
        across, _ = to_pixels(x, low_y)
        parts.append(
            f'<text x="{across}" y="{HEIGHT - 8}" text-anchor="middle">{round(x):,}</text>'
        )
    for (name, values), color in zip(series.items(), COLORS, strict=False):
        path = " ".join(f"{across},{down}" for across, down in (to_pixels(*p) for p in values))
        across, down = to_pixels(*values[-1])
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
            f'<circle cx="{across}" cy="{down}" r="3" fill="{color}"><title>{name}</title></circle>'
        )
    if len(series) > 1:
        for row, (name, color) in enumerate(zip(series, COLORS, strict=False)):
            parts.append(
                f'<text x="{WIDTH - RIGHT - 90}" y="{TOP + 14 + 16 * row}" '
                f'style="fill:{color}">{name}</text>'
            )
    return "".join([*parts, "</svg>"])


def _axis_limits(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value of an axis; a constant is given some margin."""
    low, high = min(values), max(values)
    if low == high:
        air = abs(low) * 0.1 or 1.0
        return low - air, high + air
    return low, high


def _render_last_values_html(records: Sequence[Mapping[str, float]]) -> str:
    """An HTML table with the last value of every key."""
    last: dict[str, float] = {}
    for record in records:
        last |= record
    rows = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_format_number(value))}</td></tr>"
        for key, value in last.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _format_number(value: float) -> str:
    """Five significant digits, or an integer in full, with commas between thousands."""
    return f"{value:,.5g}" if isinstance(value, float) else f"{value:,}"
