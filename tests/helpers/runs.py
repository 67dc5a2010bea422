"""A tiny run: its options, and ways to launch it, kill it and read what it recorded."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# a model that trains in milliseconds a step
TINY_GLA = {
    "model_type": "gla",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "use_short_conv": True,
    "vocab_size": 258,
}
TINY_RUN = {
    "model.tokenizer_path": "byte",
    "training.batch_size": 4,
    "training.seq_len": 64,
    "training.steps": 8,
    "training.warmup_steps": 2,
    "training.num_workers": 0,
    "metrics.log_freq": 1,
    "checkpoint.interval": 4,
    "evaluation.sample_tokens": 8,
}
WITHOUT_SAMPLE = {"evaluation.sample_tokens": 0}
SHORT_RUN = {**WITHOUT_SAMPLE, "training.steps": 2, "checkpoint.enable_checkpoint": False}
"""Changes of a tiny run that leave a fifth of a second of it."""


def launch_environment(**changes: str) -> dict[str, str]:
    """The environment of a launched run: this checkout, no GPU, no network, one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **changes,
    }


def launch_command(config: str, processes: int) -> list[str]:
    """`accelerate launch ... train.py` in fp32 with a file of accelerate_configs/."""
    return [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"),
        *("--config_file", str(ROOT / "accelerate_configs" / f"{config}.yaml")),
        *("--num_processes", str(processes), "--mixed_precision", "no"),
        str(ROOT / "train.py"),
    ]


def launch(
    argv: list[str],
    *,
    config: str,
    processes: int,
    fails: bool = False,
    script: Path = ROOT / "train.py",
    **environment: str,
) -> str:
    """Launches train.py from the launch server, and returns what all its processes printed.

    Args:
        argv: Options of train.py.
        config: Name of a file of accelerate_configs/.
        processes: Number of ranks.
        fails: The run is expected to end with an error; otherwise that ends the test.
        script: Another program than train.py.
        environment: Further variables.
    """
    arguments = [*launch_command(config, processes)[4:-1], str(script), *argv]
    with tempfile.NamedTemporaryFile(prefix="launch-") as output:
        code = _run_in_launch_server(
            ["accelerate", "launch", *arguments],
            environment=launch_environment(**environment),
            output=output.name,
            errors=output.name,
        )
        printed = Path(output.name).read_text(errors="replace")
    assert bool(code) == fails, f"exit code {code}\n{printed[-8000:]}"
    return printed


def run_python(
    arguments: list[str], *, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` in a fork of the launch server, which has imported everything.

    A law of imports, or of what is printed while they run, needs a fresh Python instead.

    Args:
        arguments: `-m module ...`, `-c code ...` or a script and its arguments.
        folder: The working folder.
        environment: Further variables.
    """
    with tempfile.TemporaryDirectory(prefix="python-") as place:
        output, errors = Path(place) / "output", Path(place) / "errors"
        code = _run_in_launch_server(
            arguments,
            folder=str(folder),
            environment=launch_environment(**environment),
            output=str(output),
            errors=str(errors),
        )
        return subprocess.CompletedProcess(arguments, code, output.read_text(), errors.read_text())


def _run_in_launch_server(command: list[str], *, folder: str = ".", **request: Any) -> int:
    """The exit code of a command for the launch server."""
    server = _launch_server()
    if server.poll() is not None:
        # whatever ended it, such as the machine's lack of memory, is no fault of this test
        _launch_server.cache_clear()
        server = _launch_server()
    assert server.stdin and server.stdout
    line = json.dumps({"command": command, "folder": folder, "seconds": 200, **request})
    server.stdin.write(line + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the launch server ended with exit code {server.wait()} during {command}"
    return int(answer)


@functools.cache
def _launch_server() -> subprocess.Popen[str]:
    """The one of this test process; it ends when its input does."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/helpers/launch_server.py")],
        env=launch_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout and server.stdout.readline() == "ready\n"
    return server


def kill_after(argv: list[str], run_folder: Path, *, step: int) -> None:
    """Launches a run and kills it with all its processes once it has logged a step."""
    process = subprocess.Popen(
        [*launch_command("cpu", 1), *argv],
        env=launch_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not any(record["step"] >= step for record in read_records(run_folder)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_records(run_folder: Path) -> list[dict[str, Any]]:
    """The complete records of a run so far."""
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_losses(run_folder: Path) -> dict[int, float]:
    """`train/loss` of every logged step."""
    return {record["step"]: record["train/loss"] for record in read_records(run_folder)}


def read_log(run_folder: Path) -> str:
    """The contents of log.txt."""
    return (run_folder / "log.txt").read_text(encoding="utf-8")


def model_digests(export: Path) -> dict[str, str]:
    """SHA-256 of every file of an exported model that equal runs have in common.

    The card and its picture are not among them: they tell how long the run took.
    """
    digests = file_digests(export)
    return {name: digests[name] for name in digests.keys() - {"README.md", "loss_curve.png"}}


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }
