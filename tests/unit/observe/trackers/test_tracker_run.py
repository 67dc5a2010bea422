"""What any tracker of Accelerate gets from a run, and what is told before one that cannot start."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flame_accel.config import Config, UserError
from flame_accel.observe.trackers import check_trackers_can_start, enabled_tracker_names
from flame_accel.observe.trackers.tracker_run import count_leading_records_held
from tests.helpers.runs import WITHOUT_SAMPLE, read_records

Configured = Callable[..., Config]
OWN_TRACKER = """
import json
from accelerate.tracking import GeneralTracker, register_tracker_class

class Own(GeneralTracker):
    name, requires_logging_directory, tracker = "own", True, None

    def __init__(self, project, folder):
        super().__init__()
        self.file = open(f"{folder}/own.jsonl", "a")
        self.write("project", project)

    def write(self, *event):
        print(json.dumps(event), file=self.file, flush=True)

    def store_init_configuration(self, values):
        self.write("options", values)

    def log(self, values, step=None):
        self.write("log", step, values)

    def finish(self):
        self.write("finish")
        self.file.close()

register_tracker_class(Own)
"""


@pytest.mark.covers_option("metrics.project")
def test_an_own_tracker_gets_project_options_and_every_record(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    corpus: Path,
    tmp_path: Path,
):
    (tmp_path / "own.py").write_text(OWN_TRACKER)
    train_here(
        flags(
            **WITHOUT_SAMPLE,
            **{
                "training.steps": 3,
                "model.custom": tmp_path / "own.py",
                "metrics.trackers": "own",
                "metrics.project": "My project",
                "evaluation.dataset": corpus,
                "checkpoint.enable_checkpoint": False,
                "job.description": "hf_" + "a" * 30,
            },
        )
    )
    run = tmp_path / "run"
    events = [json.loads(line) for line in (run / "own.jsonl").read_text().splitlines()]
    assert [event[0] for event in events] == ["project", "options", *["log"] * 3, "finish"]
    assert events[0][1] == "My project"
    options = events[1][1]
    assert options["training.steps"] == 3 and options["job.description"] == "[secret]"
    records = [{"step": step, **values} for _, step, values in events[2:-1]]
    assert records == read_records(run)
    assert "eval/loss" in records[-1]


@pytest.mark.parametrize(
    ("held", "last_valid_step", "count"),
    [
        ({}, 9, 0),
        ({1: 2, 3: 2, 5: 1}, 9, 3),
        ({1: 2, 3: 2, 5: 1, 7: 2}, 5, 3),
        ({1: 2, 3: 2}, 2, 1),
        ({1: 2, 3: 1, 5: 1}, 9, 1),
        ({3: 2, 5: 1}, 9, 0),
        ({1: 4}, 9, 0),
    ],
)
def test_only_whole_records_from_the_first_on_count_as_held(
    held: dict[int, int], last_valid_step: int, count: int
):
    records: list[dict[str, float]] = [
        {"step": 1, "a": 1.0, "b": 1.0},
        {"step": 3, "a": 1.0, "b": 1.0},
        {"step": 5, "a": 1.0},
    ]
    assert count_leading_records_held(records, held, last_valid_step) == count


def test_a_tracker_enabled_twice_is_one(configured: Configured):
    options: dict[str, Any] = {"metrics.enable_wandb": True, "metrics.trackers": "trackio,wandb"}
    assert enabled_tracker_names(configured(**options).metrics) == ["wandb", "trackio"]


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    # a folder of that name is no package
    (tmp_path / "trackio").mkdir()
    for name in ("trackio", "comet_ml"):
        with pytest.raises(UserError, match=rf"pip install {name}") as error:
            check_trackers_can_start(configured(**{"metrics.trackers": name}).metrics)
        assert "metrics.trackers" in str(error.value)


def test_an_unknown_name_is_told_with_those_that_exist(configured: Configured):
    with pytest.raises(UserError, match="there is no tracker 'wanbd'") as error:
        check_trackers_can_start(configured(**{"metrics.trackers": "wanbd"}).metrics)
    assert "tensorboard, trackio, wandb" in str(error.value)


def test_wandb_without_a_key_is_told_unless_it_is_offline(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
):
    metrics = configured(**{"metrics.enable_wandb": True}).metrics
    asked: list[dict[str, bool]] = []
    settings = SimpleNamespace(mode="")
    wandb = SimpleNamespace(
        __spec__=SimpleNamespace(origin="wandb"),
        setup=lambda: SimpleNamespace(settings=settings),
        login=lambda **options: bool(asked.append(options)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for mode, refused in (("offline", False), ("disabled", False), ("online", True)):
        settings.mode = mode
        if refused:
            with pytest.raises(UserError, match="no API key"):
                check_trackers_can_start(metrics)
        else:
            check_trackers_can_start(metrics)
    assert asked == [{"prompt": False, "verify": False}]
