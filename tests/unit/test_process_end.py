"""A process of a run ends with its exit code, with all that it printed, and without a teardown."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, launch_environment

ENDS = {
    "the end": ("pass", 0),
    "a code": ("sys.exit(3)", 3),
    "no code": ("sys.exit()", 0),
    "a text": ("sys.exit('why')", 1),
    "an error": ("raise OSError('why')", 1),
    "Ctrl-C": ("raise KeyboardInterrupt", 130),
}
PROGRAM = """
import atexit, ctypes, os, sys, threading, time
{start}
class Late:
    def __del__(self, write=os.write):
        write(1, b"teardown\\n")
def speak_late():
    time.sleep(0.2)
    print("thread")
with {context}:
    sys.late = Late()
    atexit.register(print, "atexit")
    threading.Thread(target=speak_late).start()
    print("out")
    ctypes.CDLL(None).printf(b"native\\n")
    print("err", file=sys.stderr)
    {end}
"""


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=launch_environment(), capture_output=True, text=True
    )


@pytest.mark.parametrize("end", ENDS)
def test_code_and_output_are_those_of_python(end: str):
    statement, code = ENDS[end]
    ours = PROGRAM.format(
        start="from flame_accel.process_end import exit_without_teardown",
        context="exit_without_teardown()",
        end=statement,
    )
    pythons = PROGRAM.format(
        start="import contextlib", context="contextlib.nullcontext()", end=statement
    )
    found, expected = run_python("-c", ours), run_python("-c", pythons)
    # which ends with the signal
    assert found.returncode == code and expected.returncode in (code, -2)
    assert sorted([*found.stdout.split(), "teardown"]) == sorted(expected.stdout.split())
    last_lines = [each.stderr.splitlines()[-1] for each in (found, expected)]
    assert last_lines[0] == last_lines[1]


@pytest.mark.parametrize("script", ["train.py", "flame_accel/train_process.py"])
def test_both_scripts_of_a_run_end_so(script: str):
    program = (
        "import os, runpy, sys\n"
        "class Late:\n"
        "    def __del__(self, write=os.write): write(1, b'teardown')\n"
        "sys.late = Late()\n"
        f"sys.argv = ['train.py', '-h']\n"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    )
    ended = run_python("-c", program)
    assert ended.returncode == 0
    assert "--training.steps" in ended.stdout and "teardown" not in ended.stdout


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(sys.platform != "linux", reason="threads are slowed down by Linux")
def test_threads_that_come_late_abort_no_process(tmp_path: Path):
    script = str(ROOT / "tests/helpers/late_threads.py")
    for folder in ("ours", "pythons"):
        (tmp_path / folder).mkdir()
    ended = run_python(script, str(tmp_path / "ours"), "20")
    assert ended.stdout.split() == ["0"] * 40, ended.stderr
    aborted = run_python(script, str(tmp_path / "pythons"), "15", "teardown")
    assert "-6" in aborted.stdout.split(), "otherwise this tests nothing"
