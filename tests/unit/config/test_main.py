"""The check of a command line that runs before anything heavy."""

import os
import subprocess
import sys

import pytest

from tests.helpers.options import REQUIRED


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    left_out = ("RANK", "COLUMNS")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def test_a_good_command_line_prints_nothing_and_imports_no_torch() -> None:
    code = (
        "import sys; from flame_accel.config import parse_or_exit; parse_or_exit(sys.argv[1:]);"
        "heavy = {'torch', 'fla', 'transformers', 'accelerate', 'datasets', 'yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python("-c", code, *REQUIRED).stdout == "[]\n"
    done = run_python("-m", "flame_accel.config", *REQUIRED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_process_ends_with_status_2_and_no_traceback(rank: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    if rank is not None:
        environment["RANK"] = rank
    done = subprocess.run(
        [sys.executable, "-m", "flame_accel.config", "--training.stepss", "1"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    # one rank explains, the others only say so
    assert ("Did you mean --training.steps?" in done.stderr) == (rank != "1")
    assert "3 problems" in done.stderr
