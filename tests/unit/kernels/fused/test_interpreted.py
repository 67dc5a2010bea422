"""All fused kernels are right under Triton's interpreter, in processes of their own.

The interpreter has to be chosen before Triton is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fused_kernels import INTERPRETED, ON_GPU
from tests.helpers.runs import ROOT

pytestmark = pytest.mark.skipif(ON_GPU or INTERPRETED, reason="this process runs the kernels")


def run_interpreted(*arguments: str) -> str:
    """What pytest prints of tests that pass."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rs"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_kernels():
    printed = run_interpreted(str(Path(__file__).parent))
    assert "process of the interpreter" not in printed, printed


def test_layers_of_mamba2_and_rwkv7():
    printed = run_interpreted("-m", "gpu", "tests/gpu/test_fused_mixers.py")
    assert "skipped" not in printed, printed
