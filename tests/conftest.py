"""Fixtures: a corpus, a tiny model, the options of a tiny run; a local Hub and its client."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# until the tests are collected: looking through what the imports make finds no garbage
gc.disable()
# before anything imports the hub library
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from flame_accel.config import Config, parse
from tests.helpers.runs import TINY_GLA, TINY_RUN, WITHOUT_SAMPLE

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engines-table", help="file for the table of tests/laws/test_engines.py")
    parser.addoption(
        "--oracle-calls", type=int, help="calls of each case of tests/laws/test_oracle.py"
    )


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    # pytest declares it only where its warnings plugin is on
    config.addinivalue_line("markers", "filterwarnings(filter): hides or raises some warnings")


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
def configured(flags: Callable[..., list[str]]) -> Callable[..., Config]:
    """`configured(**{"section.option": value})`: the configuration of a tiny run."""
    return lambda **changes: parse(flags(**changes))


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], None]]:
    """Runs train.main in this process, on one CPU device."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from flame_accel import train
    from flame_accel.stop_signals import StopSignals

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
        # the collection after the first step then looks through the objects of the run only
        gc.freeze()
        train.main(parse(argv), StopSignals())

    yield run
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.enable()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread, as in a test of many small products."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def torch_kernels() -> Iterator[None]:
    """The PyTorch implementations in the place of fla's functions."""
    from flame_accel import kernels

    kernels.install("torch")
    yield
    kernels.uninstall()
    kernels.install()


@pytest.fixture(scope="session")
def place_of_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs it makes the run that the others copy."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def finished(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    place_of_finished_run: Path,
    tmp_path: Path,
) -> Path:
    """The folder of a run of eight steps with the checkpoints of step 4 and step 8."""
    made, folder = place_of_finished_run, tmp_path / "finished"
    if not made.exists():
        from huggingface_hub import constants

        # the export says whether the Hub was asked: no, also if the first test has a local one
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            train_here(flags(**WITHOUT_SAMPLE, **{"job.dump_folder": made}))
    shutil.copytree(made, folder)
    for name in ("config.toml", "environment.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(str(made), str(folder)), encoding="utf-8")
    return folder


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["HubServer"]:
    """A local Hub that the client of this process uses, and others with its `environment`."""
    from huggingface_hub import close_session

    from tests.helpers.hub_client import point_client_at
    from tests.helpers.hub_server import HubServer

    server = HubServer(tmp_path / "local_hub")
    server.start()
    point_client_at(server, tmp_path / "hf_home", monkeypatch)
    yield server
    close_session()
    server.stop()


@pytest.fixture
def retry_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the Hub's client would have waited before each retry; it retries at once."""
    from tests.helpers.hub_client import skip_retry_waits

    return skip_retry_waits(monkeypatch)


@pytest.fixture
def upload_run(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    local_hub: "HubServer",
) -> Callable[..., None]:
    """`upload_run(**{"section.option": value})`: a run of two steps, uploaded to the local Hub."""
    from tests.helpers.hub_client import REPO

    def run(**options: Any) -> None:
        defaults = {**WITHOUT_SAMPLE, "training.steps": 2, "hub.repo_id": REPO}
        train_here(flags(**{**defaults, **options}))

    return run
