"""The table of a sweep: the final figures of its runs, in Markdown. Drawn from the run folders."""

from collections.abc import Sequence
from pathlib import Path

from flame_accel.commands.sweep_plan import PlannedRun
from flame_accel.models.matched_sizes import state_shape
from flame_accel.observe.metrics_file import METRICS_FILE, read_records
from flame_accel.observe.report.curves import median_tokens_per_second
from flame_accel.observe.report.read_runs import count_stored_parameters


def render_table(runs: Sequence[PlannedRun]) -> str:
    """One row for each run: parameters, state, final loss and evaluations, speed.

    Args:
        runs: runs whose folders have a metrics.jsonl, finished or not.
    """
    figures = [_final_figures(run.folder) for run in runs]
    evaluated = [
        key
        for key in dict.fromkeys(key for row in figures for key in row)
        if key.startswith("eval/") and not key.endswith("perplexity")
    ]
    header = ["run", "parameters", "state per layer", "steps", "tokens", "train/loss"]
    header += [*evaluated, "tokens/s (median)"]
    lines = [_render_row(header), _render_row(["---", *["---:"] * (len(header) - 1)])]
    for run, row in zip(runs, figures, strict=True):
        cells = [run.name, *_describe_model(run.folder)]
        cells += [f"{int(row[key]):,}" if key in row else "" for key in ("step", "tokens")]
        cells += [_format(row.get(key)) for key in ("train/loss", *evaluated)]
        cells.append(_format(row.get("throughput/tokens_per_second"), digits=0))
        lines.append(_render_row(cells))
    return "\n".join(lines) + "\n"


def _final_figures(run_folder: Path) -> dict[str, float]:
    """The last value of every key of a run's records; the speed is the median of them."""
    records = read_records(run_folder / METRICS_FILE)
    last: dict[str, float] = {}
    for record in records:
        last |= record
    speed = median_tokens_per_second(records)
    if speed is not None:
        last["throughput/tokens_per_second"] = speed
    return last


def _describe_model(run_folder: Path) -> tuple[str, str]:
    """Parameters and size of the recurrent state per layer, of the exported model."""
    weights, config_file = run_folder / "hf" / "model.safetensors", run_folder / "hf/config.json"
    if not (weights.is_file() and config_file.is_file()):
        return "", ""
    from transformers import AutoConfig

    import flame_accel.models as models

    models.register_models(())
    shape = state_shape(AutoConfig.from_pretrained(config_file.parent))
    return (
        f"{count_stored_parameters(weights):,}",
        f"{shape.elements:,}" if shape else "all tokens",
    )


def _render_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _format(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
