"""A run that is asked to end saves after the step in hand, and continues as if nothing had been.

How signals are received and passed on is tested in unit/test_stop_signals.py, who may write to a
run folder in unit/checkpoint/test_run_lock.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.checkpoint.run_lock import RunLock
from flame_accel.config import UserError
from tests.helpers.runs import (
    WITHOUT_SAMPLE,
    file_digests,
    launch_environment,
    model_digests,
    read_log,
    read_records,
)

STEPS = 200
LONG_RUN = {**WITHOUT_SAMPLE, "training.steps": STEPS, "checkpoint.interval": 10_000}


def start_and_signal(
    options: list[str], run_folder: Path, number: signal.Signals, *, processes: int
) -> int:
    """Starts a run with `flame-accel train` and signals the launcher once it trains.

    Returns:
        The exit code.
    """
    log = (run_folder.parent / "console").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "flame_accel", "train", *options],
        env=launch_environment(NGPU=str(processes)),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while len(read_records(run_folder)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=200)


def processes_with(text: str) -> list[str]:
    """Command lines of processes that name `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return [line for line in found if text in line]


@pytest.mark.parametrize(
    ("number", "processes"),
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_launcher_loses_no_step_and_leaves_no_process(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    number: signal.Signals,
    processes: int,
) -> None:
    stopped = tmp_path / "stopped"
    options = flags(**LONG_RUN, **{"job.dump_folder": str(stopped)})
    exit_code = start_and_signal(options, stopped, number, processes=processes)
    deadline = time.monotonic() + 60
    while processes_with(str(stopped)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(str(stopped)) == []
    assert "Traceback" not in (tmp_path / "console").read_text()
    assert exit_code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    ended = json.loads((stopped / "ended.json").read_text())
    last = read_records(stopped)[-1]["step"]
    assert (ended["reason"], ended["step"]) == ("signal", last) and last < STEPS
    assert [path.name for path in (stopped / "checkpoint").iterdir()] == [f"step-{last}"]
    assert not (stopped / "run.lock").exists()
    assert f"stopped and saved after step {last}; the same command continues" in read_log(stopped)
    if processes == 1:
        train_here(options)
        train_here(flags(**LONG_RUN, **{"job.dump_folder": str(tmp_path / "whole")}))
        assert [record["step"] for record in read_records(stopped)] == list(range(1, STEPS + 1))
        assert model_digests(stopped / "hf") == model_digests(tmp_path / "whole/hf")


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(
    train_here: Callable[[list[str]], None], flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    before = file_digests(tmp_path / "run")
    with pytest.raises(UserError, match=f"another run .* process {os.getpid()}"):
        train_here(flags())
    assert file_digests(tmp_path / "run") == before
    lock.release()
