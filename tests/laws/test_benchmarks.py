"""The benchmarks run."""

import os
import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT


@pytest.mark.slow
def test_the_data_benchmark_runs():
    command = [sys.executable, "benchmarks/data.py", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("online", "cache", "resume", "memory"):
        assert f"\n{part} " in done.stdout
