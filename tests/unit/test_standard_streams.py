"""Whatever standard output is connected to, a process that prints ends well and loses no file."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from flame_accel.standard_streams import protect_standard_streams
from tests.helpers.runs import ROOT, launch_environment

# prints in every way that a run does, then opens a file and reports through it
PROGRAM = """
import contextlib, logging, os, sys, warnings
{before}
from flame_accel.standard_streams import protect_standard_streams
protect_standard_streams()
from tqdm import tqdm
report = open(sys.argv[1], "w")
assert report.fileno() > 2
logging.basicConfig(stream=sys.stdout, level="INFO")
for number in tqdm(range(2000), file=sys.stdout):
    print("gr\\u00fc\\u00df \\u65e5\\udce9", number)
    logging.info("\\u65e5")
warnings.warn("\\u65e5")
tqdm.write("\\u65e5", file=sys.stderr)
with contextlib.suppress(OSError):
    os.write(1, b"native")
sys.stdout.buffer.write(b"bytes" * 100_000)
sys.stdout.flush()
report.write("done")
"""
FAULTS = {
    "closed": ">&- 2>&-",
    "input closed too": "<&- >&- 2>&-",
    "full": ">/dev/full 2>/dev/full",
    "nobody reads": "2>&1 | true",
    "one line is read": "2>&1 | head -1 >/dev/null",
    "read only": "1</dev/null 2</dev/null",
}


def run_program(tmp_path: Path, redirection: str, *, before: str = "", **environment: str) -> str:
    """Runs PROGRAM under a redirection; returns its standard output."""
    program, report = tmp_path / "program.py", tmp_path / "report"
    program.write_text(PROGRAM.format(before=before))
    command = f"set -o pipefail; {sys.executable} {program} {report} {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], env=launch_environment(**environment), capture_output=True
    )
    # a pipe that is closed early is none of the program's mistakes, and head and true return 0
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert report.read_text() == "done"
    return done.stdout.decode()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_console_that_takes_nothing_ends_no_process(tmp_path: Path, fault: str):
    run_program(tmp_path, FAULTS[fault])


@pytest.mark.parametrize("environment", [{"PYTHONUNBUFFERED": "1"}, {"PYTHONDEVMODE": "1"}])
def test_a_full_console_is_no_matter_in_other_modes_of_python(tmp_path: Path, environment: dict):
    run_program(tmp_path, FAULTS["full"], **environment)


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything(tmp_path: Path):
    printed = run_program(
        tmp_path, "| (sleep 1; cat)", before="os.set_blocking(1, False)", PYTHONUTF8="1"
    )
    assert "1999" in printed and printed.count("bytes") == 100_000


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_character_that_cannot_be_shown_is_escaped(tmp_path: Path, environment: dict):
    printed = run_program(tmp_path, "2>/dev/null | iconv -f latin1 -t utf8", **environment)
    assert "\\u65e5\\udce9 1999" in printed
    assert ("gr\u00fc\u00df" in printed) == ("latin-1" in environment.values())


def test_a_working_console_shows_every_character(tmp_path: Path):
    printed = run_program(tmp_path, "", PYTHONUTF8="1")
    assert "gr\u00fc\u00df \u65e5\\udce9 0" in printed and "native" in printed


def test_streams_that_were_put_in_place_are_kept(monkeypatch: pytest.MonkeyPatch):
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stdout", theirs)
    monkeypatch.setattr(sys, "__stdout__", sys.__stdout__)
    monkeypatch.setattr(sys, "__stderr__", sys.__stderr__)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    protect_standard_streams()
    assert sys.stdout is theirs


def test_protecting_twice_is_protecting_once(tmp_path: Path):
    check = (
        "from flame_accel.standard_streams import protect_standard_streams as protect\n"
        "import sys\n"
        "protect(); once = sys.stdout, sys.stderr\n"
        "protect(); assert once == (sys.stdout, sys.stderr)\n"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=launch_environment(), check=True)
