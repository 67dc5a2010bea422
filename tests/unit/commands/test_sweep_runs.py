"""Runs of a sweep: each is started once on its devices, a failure loses no other, and all are told.

Runs here are programs that behave as training would; one law trains.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from flame_accel.commands import sweep_runs
from flame_accel.commands.sweep_plan import PlannedRun, plan_runs
from flame_accel.config import UsageError, to_toml
from tests.helpers.runs import ROOT, launch_environment, read_records

# finishes unless its model says otherwise, and writes what it was given
TRAIN = """
    import json, os, sys, time
    from pathlib import Path
    from flame_accel.config import parse
    assert sys.argv[1] == "train"
    config = parse(sys.argv[2:])
    folder = Path(config.job.dump_folder)
    folder.mkdir(parents=True)
    visible = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NGPU")}
    (folder / "environment").write_text(json.dumps({**visible, "start": time.time()}))
    seed = config.training.seed
    if seed == 13:
        sys.exit(7)
    print("trained", seed)
    (folder / "ended.json").write_text(json.dumps({"reason": "finished", "step": 1000}))
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m flame_accel train` is the program above."""
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(TRAIN))
    start = subprocess.Popen

    def start_program(command: list[str], **options: Any) -> subprocess.Popen[Any]:
        assert command[1:3] == ["-m", "flame_accel"]
        return start([sys.executable, str(program), *command[3:]], **options)

    monkeypatch.setattr(sweep_runs.subprocess, "Popen", start_program)
    monkeypatch.setattr(sweep_runs, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def plan(tmp_path: Path, seeds: str) -> list[PlannedRun]:
    return plan_runs(
        ["mqar_small"],
        models=[],
        varied=[f"training.seed={seeds}"],
        options=["--training.steps=1000"],
        output=tmp_path / "sweep",
    )


@pytest.mark.usefixtures("programs")
def test_a_failed_run_loses_no_other_and_finished_ones_are_not_run_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = plan(tmp_path, "1,13,2")
    outcomes = sweep_runs.run_all(runs, at_once=1, num_gpus=0)
    assert [(one.exit_code, one.finished) for one in outcomes] == [(0, True), (7, False), (0, True)]
    assert [one.run for one in outcomes] == runs
    assert "trained 1" in capfd.readouterr().out
    starts = [(run.folder / "environment").read_text() for run in (runs[0], runs[2])]
    os.unlink(runs[1].folder / "environment")
    runs[1].folder.rmdir()
    again = sweep_runs.run_all(runs, at_once=1, num_gpus=0)
    assert [one.exit_code for one in again] == [0, 7, 0]
    assert starts == [(run.folder / "environment").read_text() for run in (runs[0], runs[2])]
    assert capfd.readouterr().out.count("has finished; not trained again") == 2


@pytest.mark.usefixtures("programs")
def test_runs_at_once_have_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    runs = plan(tmp_path, "1,2,3")
    assert all(one.finished for one in sweep_runs.run_all(runs, at_once=2, num_gpus=2))
    found = [re.findall(r'"(\d)"', (run.folder / "environment").read_text()) for run in runs]
    assert found[:2] == [["4", "1"], ["6", "1"]]
    assert found[2] in found[:2]
    assert [Path(f"{run.folder}.out").read_text() for run in runs] == [
        f"trained {seed}\n" for seed in (1, 2, 3)
    ]


@pytest.mark.usefixtures("programs")
def test_a_finished_run_with_other_options_is_no_result_of_this_sweep(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, "1")
    sweep_runs.run_all([run], at_once=1, num_gpus=0)
    (run.folder / "config.toml").write_text(to_toml(run.config))
    sweep_runs.check_finished_runs_have_these_options([run])
    (changed,) = plan_runs(
        ["mqar_small"],
        models=[],
        varied=["training.seed=1"],
        options=["--training.steps=1000", "--optimizer.lr=0.5", "--metrics.log_freq=3"],
        output=tmp_path / "sweep",
    )
    with pytest.raises(UsageError, match=r"has finished with other values of optimizer\.lr\n"):
        sweep_runs.check_finished_runs_have_these_options([changed])


def test_a_signal_reaches_the_run_and_starts_no_further_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends as a run does at a signal; the next one is not started."""
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "print('ready', flush=True); time.sleep(60)"
    )
    start = subprocess.Popen
    started: list[subprocess.Popen[Any]] = []

    def start_and_stop(command: list[str], **options: Any) -> subprocess.Popen[Any]:
        process = start([sys.executable, "-c", program], stdout=subprocess.PIPE, **options)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        started.append(process)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return process

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(sweep_runs.subprocess, "Popen", start_and_stop)
    handler = signal.getsignal(signal.SIGTERM)
    begin = time.monotonic()
    try:
        outcomes = sweep_runs.run_all(plan(tmp_path, "1,2"), at_once=1, num_gpus=0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 30
    assert len(started) == 1
    assert [(one.exit_code, one.finished) for one in outcomes] == [(0, False), (143, False)]
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.slow
def test_a_sweep_trains_compares_and_continues(tmp_path: Path) -> None:
    command = [
        *(
            sys.executable,
            "-m",
            "flame_accel",
            "sweep",
            "mqar_small",
            "--models",
            "gla,transformer",
        ),
        *("--output", str(tmp_path), "--training.steps=4", "--training.warmup_steps=1"),
        "--evaluation.max_tokens=500",
    ]

    def sweep(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], env=launch_environment(), capture_output=True, text=True
        )

    first = sweep()
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "mqar_small"
    table = (folder / "table.md").read_text()
    assert "<title>" in (folder / "report.html").read_text()
    assert table in first.stdout
    assert (folder / "report.html").is_file()
    rows = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    assert rows == ["| gla", "| transformer"]
    lr = [
        [record["optimizer/lr"] for record in read_records(folder / name)]
        for name in ("gla", "transformer")
    ]
    assert lr[0] == lr[1]
    records = (folder / "gla/metrics.jsonl").read_bytes()
    again = sweep()
    assert again.returncode == 0
    assert again.stdout.count("has finished; not trained again") == 2
    assert (folder / "gla/metrics.jsonl").read_bytes() == records
    refused = sweep("--optimizer.lr=1")
    assert refused.returncode == 2
    assert "has finished with other values of optimizer.lr" in refused.stderr
