"""A run that hangs says who is missing and is restarted by its launcher, as if nothing had been.

When a run counts as hanging is tested in unit/observe/test_watchdog.py.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flame_accel.observe.watchdog import EXIT_CODE
from tests.helpers.runs import (
    WITHOUT_SAMPLE,
    launch_command,
    launch_environment,
    model_digests,
    read_log,
    read_records,
)

STEPS = 400
LONG_RUN = {
    **WITHOUT_SAMPLE,
    "training.steps": STEPS,
    "training.batch_size": 2,
    "checkpoint.interval": 20,
    "comm.train_timeout_seconds": 12,
}


def start(options: list[str], console: Path, *, processes: int, restarts: int) -> subprocess.Popen:
    program, *rest = launch_command("ddp" if processes > 1 else "cpu", processes)
    command = [program, *rest[:-1], "--max_restarts", str(restarts), rest[-1], *options]
    with console.open("w") as file:
        return subprocess.Popen(
            command,
            env=launch_environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_records(process: subprocess.Popen, run_folder: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while len(read_records(run_folder)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stopped_rank", [0, 1])
def test_a_stopped_rank_is_named_and_the_launcher_restarts_the_run(
    flags: Callable[..., list[str]], tmp_path: Path, stopped_rank: int
) -> None:
    run, console = tmp_path / "run", tmp_path / "console"
    process = start(flags(**LONG_RUN), console, processes=2, restarts=1)
    wait_for_records(process, run, 50)
    [pid] = [json.loads((run / f"watchdog/rank-{stopped_rank}.json").read_text())[2]]
    os.kill(pid, signal.SIGSTOP)
    assert process.wait(timeout=200) == 0
    assert re.search(
        rf"watchdog: no .* for 9 s.*: rank {stopped_rank} [^;]* shows no sign of life; the run "
        f"ends with exit code {EXIT_CODE}",
        read_log(run),
    )
    other = 1 - stopped_rank
    assert "train.py" in (run / f"watchdog/stacks-{other}.txt").read_text()
    assert [path.name for path in (run / "watchdog").iterdir()] == [f"stacks-{other}.txt"]
    assert [record["step"] for record in read_records(run)] == list(range(1, STEPS + 1))
    whole = flags(**LONG_RUN, **{"job.dump_folder": str(tmp_path / "whole")})
    assert start(whole, console, processes=2, restarts=0).wait(timeout=200) == 0
    assert model_digests(run / "hf") == model_digests(tmp_path / "whole/hf")


@pytest.mark.slow
def test_a_stopped_data_worker_is_named_and_left_behind_by_nobody(
    flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    run, console = tmp_path / "run", tmp_path / "console"
    options = {**LONG_RUN, "training.num_workers": 1, "training.watchdog_seconds": 5}
    process = start(flags(**options), console, processes=1, restarts=0)
    wait_for_records(process, run, 50)
    rank = next(
        child
        for child in psutil.Process(process.pid).children()
        if "train.py" in child.cmdline()[1]
    )
    workers = [child for child in rank.children(recursive=True) if not child.children()]
    for worker in workers:
        worker.suspend()
    # the launcher's own code; the rank's is on the console
    assert process.wait(timeout=200) != 0
    printed = console.read_text()
    assert f"exit code {EXIT_CODE}" in printed
    assert "data workers" in printed and "do not run" in printed
    deadline = time.monotonic() + 20
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(worker.is_running() for worker in workers)
