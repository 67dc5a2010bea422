"""What the tests of whole runs share: a tiny run, in this process or launched."""

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# before anything imports the hub library
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engines-table", help="file for the table of tests/test_engines.py")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of ragged lengths, one a JSON line."""
    path = tmp_path_factory.mktemp("corpus") / "train.jsonl"
    texts = [f"document {i}: " + "abc def " * (i * 7 % 23) + "\n" for i in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "gla.json"
    path.write_text(json.dumps(TINY_GLA))
    return path


@pytest.fixture
def flags(corpus: Path, tiny_model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`flags(**{"section.option": value})`: the command line of a tiny run in `tmp_path/run`."""

    def build(**changes: Any) -> list[str]:
        options: dict[str, Any] = {
            "job.dump_folder": tmp_path / "run",
            "model.config": tiny_model,
            "training.dataset": corpus,
            **TINY_RUN,
            **changes,
        }
        return [f"--{name}={value}" for name, value in options.items() if value is not None]

    return build


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], None]]:
    """Runs train.main in this process, on one CPU device."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    import train
    from flame_accel.config import parse

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(argv: list[str]) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
        train.main(parse(argv))

    yield run
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.enable()


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
    server = _launch_server()
    with tempfile.NamedTemporaryFile(prefix="launch-") as output:
        request = {
            "arguments": [*launch_command(config, processes)[4:-1], str(script), *argv],
            "environment": launch_environment(**environment),
            "output": output.name,
            "seconds": 200,
        }
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        printed = Path(output.name).read_text(errors="replace")
    assert bool(code) == fails, f"exit code {code}\n{printed[-8000:]}"
    return printed


@functools.cache
def _launch_server() -> subprocess.Popen[str]:
    """The one of this test process; it ends when its input does."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/launch_server.py")],
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
