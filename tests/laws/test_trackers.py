"""Laws of trackers: whatever happens to a run, each tracker has its curve, each step once."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.bad_data import bad_data
from tests.helpers.runs import WITHOUT_SAMPLE, launch, read_log, read_losses
from tests.helpers.tracker_stores import (
    read_mlflow,
    read_sample_steps,
    read_tensorboard,
    read_trackio,
    read_wandb,
)

Flags = Callable[..., list[str]]
DIES = """
import os, signal, time
from torch.optim.optimizer import register_optimizer_step_post_hook
made = 0
def count(optimizer, *_):
    global made
    parameters = optimizer.param_groups[0]["params"]
    made += any(each.grad is not None and bool(each.grad.any()) for each in parameters)
    if made == int(os.environ.get("DIES_IN", 0)):
        time.sleep(float(os.environ["AFTER_SECONDS"]))
        os.kill(os.getpid(), signal.SIGKILL)
register_optimizer_step_post_hook(count)
"""
ALL = "tensorboard,wandb,trackio,mlflow"
TRACKERS = ["tensorboard", pytest.param(ALL, marks=pytest.mark.slow)]


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the trackers write below a folder, and no one else's settings."""
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "TRACKIO_SPACE_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def assert_curves_are_those_of_the_records(trackers: str, run: Path, stores: Path) -> None:
    losses = read_losses(run)
    readers = {
        "tensorboard": lambda: read_tensorboard(run),
        "wandb": lambda: read_wandb(run),
        "trackio": lambda: read_trackio(stores / "trackio/flame_accel.db"),
        "mlflow": lambda: read_mlflow(stores / "mlflow.db"),
    }
    for name in trackers.split(","):
        points = readers[name]()
        assert [step for step, _ in points] == list(losses), name
        assert [value for _, value in points] == pytest.approx(list(losses.values())), name


@pytest.mark.covers_option("metrics.trackers")
@pytest.mark.parametrize("trackers", TRACKERS)
def test_each_step_is_once_on_each_curve_after_kills(
    flags: Flags, tmp_path: Path, stores: Path, trackers: str
):
    (tmp_path / "dies.py").write_text(DIES)
    options = {
        **WITHOUT_SAMPLE,
        "training.steps": 12,
        "model.custom": tmp_path / "dies.py",
        "metrics.trackers": trackers,
    }
    argv = flags(**options)
    # what was reported may still be on its way to the tracker, or has arrived
    for step, seconds in (("6", "0"), ("5", "2")):
        launch(argv, config="cpu", processes=1, fails=True, DIES_IN=step, AFTER_SECONDS=seconds)
    launch(argv, config="cpu", processes=1)
    assert list(read_losses(tmp_path / "run")) == list(range(1, 13))
    assert_curves_are_those_of_the_records(trackers, tmp_path / "run", stores)
    assert set(json.loads((tmp_path / "run/trackers.json").read_text())) == set(trackers.split(","))


@pytest.mark.parametrize("trackers", TRACKERS)
def test_steps_that_a_rewind_takes_back_are_taken_back_by_the_trackers(
    train_here: Callable[[list[str]], None],
    flags: Flags,
    corpus: Path,
    tmp_path: Path,
    stores: Path,
    trackers: str,
):
    (tmp_path / "prompts.txt").write_text("document 1\ndocument 2\n")
    options = {
        "evaluation.dataset": corpus,
        "evaluation.interval": 5,
        "evaluation.max_tokens": 64,
        "evaluation.prompts": tmp_path / "prompts.txt",
        "evaluation.sample_tokens": 2,
        "training.steps": 10,
        "training.max_consecutive_skips": 3,
        "training.max_rewinds": 1,
        "checkpoint.interval": 2,
        "metrics.trackers": trackers,
    }
    with bad_data((6, 7, 8)):
        train_here(flags(**options))
    assert "the run goes back to step 4" in read_log(tmp_path / "run")
    assert_curves_are_those_of_the_records(trackers, tmp_path / "run", stores)
    for name in set(trackers.split(",")) - {"mlflow"}:
        database = stores / "trackio/flame_accel.db"
        assert read_sample_steps(name, tmp_path / "run", database) == [5, 10], name


HANGS = """
import os, threading
from accelerate.tracking import GeneralTracker, register_tracker_class

class Stuck(GeneralTracker):
    name, requires_logging_directory, tracker = "stuck", False, None

    def __init__(self, project):
        super().__init__()

    def start(self):
        self.wait_where("start")

    def log(self, values, step=None):
        self.wait_where("log")

    def finish(self):
        self.wait_where("finish")

    def wait_where(self, place):
        if os.environ["HANGS_IN"] == place:
            # Python would wait for it as the process ends
            thread = threading.Thread(target=threading.Event().wait)
            thread.start()
            thread.join()

register_tracker_class(Stuck)
"""


@pytest.mark.covers_option("metrics.wait_seconds")
@pytest.mark.parametrize("place", ["start", "log", "finish"])
def test_a_tracker_that_hangs_costs_the_end_a_limited_time_and_the_others_nothing(
    flags: Flags, tmp_path: Path, stores: Path, place: str
):
    (tmp_path / "stuck.py").write_text(HANGS)
    argv = flags(
        **WITHOUT_SAMPLE,
        **{
            "training.steps": 3,
            "model.custom": tmp_path / "stuck.py",
            "metrics.trackers": "stuck,tensorboard",
            "metrics.wait_seconds": 1,
            "checkpoint.enable_checkpoint": False,
        },
    )
    begin = time.monotonic()
    printed = launch(argv, config="cpu", processes=1, HANGS_IN=place)
    assert time.monotonic() - begin < 60
    assert "stuck has not taken its last records within 1 s" in printed
    assert_curves_are_those_of_the_records("tensorboard", tmp_path / "run", stores)
    assert (tmp_path / "run/hf/config.json").is_file()
