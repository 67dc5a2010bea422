"""The benchmarks run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, launch_environment


@pytest.mark.slow
def test_the_data_benchmark_runs():
    command = [sys.executable, "benchmarks/data.py", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("online", "cache", "resume", "memory"):
        assert f"\n{part} " in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_saves_runs(tiny_model: Path, tmp_path: Path):
    command = [sys.executable, "benchmarks/saves.py", "--config", str(tiny_model), "--rows", "1"]
    command += ["--seq_len", "64", "--steps", "2", "--vocab_multiple", "2", "--saves", "1"]
    command += ["--mixed_precision", "no", "--folder", str(tmp_path)]
    output = tmp_path / "saves.json"
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=launch_environment(ACCELERATE_USE_CPU="true"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert len(result["step_seconds"]) == 3 and len(result["background"]) == 1
    assert result["waiting"]["stall_seconds"] > 0
    # nothing stays behind
    assert [path.name for path in tmp_path.iterdir()] == ["saves.json"]


@pytest.mark.slow
def test_the_benchmark_of_lm_eval_finds_the_same_scores(finished: Path, tmp_path: Path):
    output = tmp_path / "scores.md"
    command = [sys.executable, "benchmarks/lm_eval_scores.py", str(finished), "--examples", "5"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=launch_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert output.read_text().count("| `real_line` |") == 2
