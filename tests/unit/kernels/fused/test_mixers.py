"""Layers of fused mixers are right under Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.runs import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")
def test_fused_mixers_are_right_under_the_interpreter():
    file = ROOT / "tests/gpu/test_fused_mixers.py"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "gpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, str(file)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout
