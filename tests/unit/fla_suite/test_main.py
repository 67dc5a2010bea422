"""fla's own tests are run through our kernels, and a failure that nobody expects is noticed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fla_suite.__main__ import ROOT, summarize

TESTS = """
import pytest, torch
import fla
from fla.ops.gla import chunk_gla
from fla.utils import device

def test_installed_fla_runs_on_the_cpu():
    assert device == "cpu" and "checkout" not in fla.__file__
    x = torch.randn(1, 8, 2, 4, device=device)
    assert chunk_gla(x, x, x, -x.abs())[0].shape == x.shape

@pytest.mark.parametrize("T", [2048 + 7])
def test_long(T):
    assert T == 256 + 7

def test_channel_mixing_no_out_of_bounds_writes():
    pass

def test_new():
    raise ValueError("wrong numbers")
"""


def test_every_test_has_its_line_and_what_nobody_expects_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkout" / "tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_rwkv7.py").write_text(TESTS)
    (tmp_path / "checkout" / "fla").mkdir()
    (tmp_path / "checkout" / "fla" / "__init__.py").write_text("")
    results = tmp_path / "results.tsv"
    command = [sys.executable, "-m", "tests.fla_suite", str(tmp_path / "checkout"), "tests/ops"]
    finished = subprocess.run(
        [*command, "--results", str(results)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    outcomes = [line.split("\t")[0] for line in results.read_text().splitlines()]
    assert outcomes == ["passed", "passed", "mended", "failed"], finished.stdout
    assert "| tests/ops | 2 | 0 | 0 | 0 | 1 | 1 |" in finished.stdout
    assert "failed tests/ops/test_rwkv7.py::test_new: ValueError: wrong numbers" in finished.stdout


def test_outcomes_are_counted_by_folder(tmp_path: Path) -> None:
    results = tmp_path / "results.tsv"
    results.write_text(
        "passed\t0.1\ttests/ops/utils/test_a.py::test_b[C-1]\t\n"
        "expected\t0.1\ttests/ops/test_a.py::test_b\tneeds a kernel\n"
        "skipped\t0.0\ttests/ops/test_a.py::test_c\tno GPU\n"
    )
    assert summarize(results).splitlines()[2:] == [
        "| tests/ops/utils | 1 | 0 | 0 | 0 | 0 | 0 |",
        "| tests/ops | 0 | 1 | 0 | 1 | 0 | 0 |",
    ]
