"""What a report says in words and numbers: figures, options, evaluations, events, environment.

Each table has a column for each run; a report of one run has one. Nothing here is HTML.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flame_accel.observe.report.curves import (
    last_finite,
    median,
    median_tokens_per_second,
)
from flame_accel.observe.report.read_runs import RunRecord

MOST_EVENTS = 200
NAMES_OF_A_RUN = ("job.dump_folder", "job.config_file", "job.description")
"""Options that differ between any two runs and say nothing."""
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity")
HIGHER_IS_BETTER = (
    "accuracy",
    "answer_accuracy",
    "acc",
    "acc_norm",
    "exact_match",
    "f1",
    "recall",
    "score",
)
SECTIONS = {"set": "Validation sets", "probe": "Probes", "lm_eval": "lm-eval tasks"}
ENVIRONMENT_ROWS = {
    "device": "device",
    "processes": "processes",
    "engine": "engine",
    "mixed_precision": "mixed precision",
    "python": "Python",
    "cuda": "CUDA",
    "platform": "platform",
    "command": "command",
}


class Row(NamedTuple):
    """A row of a table: what it is about, and its text for each run."""

    name: str
    cells: Sequence[str]
    best: Sequence[bool] = ()
    """Which cells have the best value; empty where none is better."""


@dataclass(frozen=True)
class Table:
    """Rows under a title."""

    title: str
    rows: Sequence[Row]


class Event(NamedTuple):
    """Something that happened to a run at a step."""

    step: int
    kind: str
    """`restart`, `skipped` or `rewind`."""
    text: str


def list_figures(runs: Sequence[RunRecord]) -> list[Row]:
    """The final figures of some runs; those that no run has are left out."""

    def row(name: str, values: Sequence[float | None], format: str, better: int = 0) -> Row:
        cells = ["" if value is None else format.format(value) for value in values]
        return Row(name, cells, _mark_best(values, better))

    def last(key: str) -> list[float | None]:
        return [last_finite(run.records, key) for run in runs]

    def typical(key: str) -> list[float | None]:
        return [median(run.records, key) for run in runs]

    best = [_best_validation(run) for run in runs]
    tokens = [last_finite(run.records, "tokens") for run in runs]
    seconds = [(run.x_axes["seconds"] or [None])[-1] for run in runs]
    flops = [(run.x_axes["flops"] or [None])[-1] for run in runs]
    skipped = last("optimizer/skipped_steps")
    memory = [_largest(run.records, "memory/peak_gib") for run in runs]
    speeds = [median_tokens_per_second(run.records) for run in runs]
    rows = [
        Row("status", [describe_status(run) for run in runs]),
        Row("parameters", [f"{n:,}" if (n := run.num_parameters) else "" for run in runs]),
        row("training loss", last("train/loss"), "{:.4f}", -1),
        row("validation loss", last("eval/loss"), "{:.4f}", -1),
        Row("best validation loss", best),
        row("bits per byte", last("eval/bits_per_byte"), "{:.4f}", -1),
        row("accuracy", last("eval/accuracy"), "{:.2%}", 1),
        Row("tokens", ["" if value is None else format_count(value) for value in tokens]),
        Row("training time", ["" if value is None else format_time(value) for value in seconds]),
        Row("training FLOPs", [f"{n:.3g}".replace("e+", "e") if n else "" for n in flops]),
        row("tokens per second (median)", speeds, "{:,.0f}", 1),
        row("TFLOP/s per device", typical("throughput/tflops_per_device"), "{:.3g}", 1),
        row("MFU", typical("throughput/mfu"), "{:.1%}", 1),
        row("peak memory (GiB)", memory, "{:.2f}", -1),
        Row("skipped updates", ["" if not n else f"{n:,.0f}" for n in skipped]),
    ]
    return [each for each in rows if any(each.cells)]


def describe_status(run: RunRecord) -> str:
    """Whether a run has finished, and after which step, in words."""
    step = f"{run.last_step:,}"
    total = run.options.get("training.steps")
    of_total = f"step {step} of {total:,}" if isinstance(total, int) else f"step {step}"
    reason = str(run.ended.get("reason", ""))
    if reason == "finished":
        return f"finished, step {step}" if run.last_step == total else f"finished, {of_total}"
    if reason:
        what = str(run.ended.get("what", "")).splitlines()[:1]
        told = f" ({what[0][:200]})" if what else ""
        return f"stopped by {'an ' if reason == 'error' else 'a '}{reason}{told}, {of_total}"
    if not run.records:
        return "no records"
    return f"{'running' if run.is_recent else 'no end recorded'}, {of_total}"


def list_differing_options(runs: Sequence[RunRecord]) -> list[Row]:
    """The options that have not the same value in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    rows = []
    for name in names:
        cells = [format_value(run.options.get(name, "")) for run in runs]
        if len(set(cells)) > 1 and name not in NAMES_OF_A_RUN:
            folders = {cell.rpartition("/")[0] for cell in cells}
            # of paths in the same folder, only what differs
            rows.append(
                Row(name, [c.rpartition("/")[2] for c in cells] if len(folders) == 1 else cells)
            )
    return rows


def list_evaluation_tables(runs: Sequence[RunRecord]) -> list[Table]:
    """The last figures of each set, probe and task that was evaluated."""
    tables = []
    for kind, title in SECTIONS.items():
        latest: dict[str, dict[int, Mapping[str, float]]] = {}
        for index, run in enumerate(runs):
            for evaluation in sorted(run.evaluations, key=lambda each: each.step):
                if evaluation.kind == kind:
                    latest.setdefault(evaluation.name, {})[index] = evaluation.metrics
        rows = []
        for name, found in latest.items():
            metrics = dict.fromkeys(metric for values in found.values() for metric in values)
            for metric in metrics:
                if "_stderr" in metric:
                    continue
                values = [found.get(index, {}).get(metric) for index in range(len(runs))]
                error = metric.partition(",")
                errors = [
                    found.get(index, {}).get(f"{error[0]}_stderr{error[1]}{error[2]}")
                    for index in range(len(runs))
                ]
                cells = [_with_error(v, e) for v, e in zip(values, errors, strict=True)]
                short = metric.removesuffix(",none").replace("_", " ")
                rows.append(
                    Row(f"{name} · {short}", cells, _mark_best(values, _direction_of(metric)))
                )
        if rows:
            tables.append(Table(title, rows))
    return tables


def list_environment(runs: Sequence[RunRecord]) -> list[Row]:
    """On what the last start of each run ran."""
    of_runs = [_flatten_environment(run.environment) for run in runs]
    names = dict.fromkeys(name for values in of_runs for name in values)
    return [Row(name, [values.get(name, "") for values in of_runs]) for name in names]


def list_events(run: RunRecord) -> list[Event]:
    """Restarts, skipped updates and rewinds of a run, the first `MOST_EVENTS` by step."""
    events = [Event(int(s["step"]), "restart", _describe_start(s)) for s in run.starts[1:]]
    for record in run.skipped:
        step = int(record["step"])
        if "rewound_to" in record:
            events.append(Event(step, "rewind", f"went back to {record['rewound_to']}"))
        else:
            events.append(Event(step, "skipped", str(record.get("reason", "no reason recorded"))))
    return sorted(events)[:MOST_EVENTS]


def format_count(value: float) -> str:
    """A large number with its first digits: 1.23 B."""
    for limit, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == ' k' else limit):.3g}{unit}"
    return f"{value:,.0f}"


def format_time(seconds: float) -> str:
    """A duration as a person says it: 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02} s"
    minutes = round(seconds / 60)
    if minutes <= 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def format_value(value: object) -> str:
    """An option's value as config.toml has it, without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mark_best(values: Sequence[float | None], better: int) -> list[bool]:
    """Which values are the best of several: the highest if `better` is 1, the lowest if -1."""
    known = [better * v for v in values if v is not None and math.isfinite(v)]
    if better == 0 or len(values) < 2 or len(set(known)) < 2:
        return []
    return [value is not None and better * value == max(known) for value in values]


def _direction_of(metric: str) -> int:
    name = metric.partition(",")[0].rpartition("/")[2]
    return -1 if name in LOWER_IS_BETTER else 1 if name in HIGHER_IS_BETTER else 0


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    told = f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    known = error is not None and math.isfinite(error)
    return f"{told} ± {error:.4f}" if known else told


def _best_validation(run: RunRecord) -> str:
    points = [
        (loss, int(record["step"]))
        for record in run.records
        if math.isfinite(loss := record.get("eval/loss", math.nan))
    ]
    # the last one is shown anyway
    if not points or min(points) == points[-1]:
        return ""
    loss, step = min(points)
    return f"{loss:.4f} (step {step:,})"


def _largest(records: Sequence[Mapping[str, float]], key: str) -> float | None:
    values = (record.get(key, math.nan) for record in records)
    return max((value for value in values if math.isfinite(value)), default=None)


def _flatten_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    found = {
        label: str(environment[key])
        for key, label in ENVIRONMENT_ROWS.items()
        if environment.get(key) not in (None, "", "NO")
    }
    git = environment.get("git")
    if isinstance(git, dict):
        changed = " with changes" if git.get("dirty") else ""
        found["git commit"] = f"{str(git.get('commit'))[:12]}{changed}"
    for section in ("packages", "kernel_packages"):
        packages = environment.get(section)
        if isinstance(packages, dict):
            found |= {str(k): str(v) for k, v in packages.items() if v is not None}
    return found


def _describe_start(start: Mapping[str, Any]) -> str:
    count = start.get("processes", 1)
    processes = f"{count} processes" if count != 1 else None
    parts = (start.get("device"), processes, start.get("engine"))
    where = ", ".join(str(part) for part in parts if part not in (None, "", "NO"))
    changes = [
        f"{change['option']}: {format_value(change['before'])} → {format_value(change['after'])}"
        for change in start["changed_options"]
    ]
    return "; ".join([f"resumed on {where}" if where else "resumed", *changes])
