"""The table of a sweep has the final figures of each run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from flame_accel.commands.sweep_plan import PlannedRun, plan_runs
from flame_accel.commands.sweep_table import render_table
from tests.helpers.runs import TINY_GLA


def write_run(run: PlannedRun, loss: float, *, exported: bool) -> None:
    run.folder.mkdir(parents=True)
    records = [
        {"step": 1, "tokens": 8, "train/loss": 9.0, "throughput/tokens_per_second": 10.0},
        {"step": 2, "tokens": 16, "train/loss": loss, "throughput/tokens_per_second": 3000.0},
        {"step": 3, "tokens": 1024, "eval/accuracy": loss / 2, "eval/perplexity": 1.0}
        | {"throughput/tokens_per_second": 3002.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run.folder / "metrics.jsonl").write_text(lines)
    if exported:
        (run.folder / "hf").mkdir()
        (run.folder / "hf/config.json").write_text(json.dumps(TINY_GLA))
        tensors = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}
        save_file(tensors, run.folder / "hf/model.safetensors")


def test_a_row_has_the_last_figures_of_its_run(tmp_path: Path) -> None:
    (run,) = plan_runs(["mqar_small"], models=["gla_1M"], varied=[], options=[], output=tmp_path)
    other = replace(run, name="other", folder=tmp_path / "other")
    write_run(run, 0.5, exported=True)
    write_run(other, 0.25, exported=False)
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in render_table([run, other]).splitlines()
    ]
    assert header == [
        *("run", "parameters", "state per layer", "steps", "tokens", "train/loss"),
        *("eval/accuracy", "tokens/s (median)"),
    ]
    # two heads of 8 x 16
    assert rows == [
        ["gla_1M", "17", "256", "3", "1,024", "0.5000", "0.2500", "3,000"],
        ["other", "", "", "3", "1,024", "0.2500", "0.1250", "3,000"],
    ]
    shutil.rmtree(tmp_path)
