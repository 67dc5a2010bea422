"""The recorded starts: which steps ran on what, and with which options."""

import json
from pathlib import Path
from typing import Any

import pytest

from flame_accel.config import Config
from flame_accel.observe.run_folder import write_config_environment_and_clear_ended
from flame_accel.observe.starts import (
    list_kept_starts_and_this_one,
    read_kept_starts,
    read_options_of_last_start,
    read_options_that_made_step,
)


@pytest.fixture
def start(configured, tmp_path: Path):
    """`start(step, lr)`: starts the run in `tmp_path` after a step, with a learning rate."""

    def begin(step: int, lr: float) -> list[dict[str, Any]]:
        config: Config = configured(**{"optimizer.lr": lr})
        starts = list_kept_starts_and_this_one(
            tmp_path, config, step=step, environment={"processes": step + 1}
        )
        write_config_environment_and_clear_ended(tmp_path, config, {"starts": starts})
        return starts

    return begin


def changes(start: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [tuple(change.values()) for change in start["changed_options"]]


def test_a_run_that_never_stopped_has_one_start(start, tmp_path):
    assert start(0, 0.5) == [{"step": 0, "processes": 1, "changed_options": []}]
    assert read_kept_starts(tmp_path) == start(0, 0.5)
    assert read_options_that_made_step(tmp_path, 8)["optimizer.lr"] == 0.5


def test_a_second_start_adds_what_changed_and_each_step_has_its_options(start, tmp_path):
    start(0, 0.5)
    _, second = start(4, 0.25)
    assert second["processes"] == 5
    assert changes(second) == [("optimizer.lr", 0.5, 0.25)]
    # step 4 is the last one of the first start
    lr = {
        step: read_options_that_made_step(tmp_path, step)["optimizer.lr"] for step in (1, 4, 5, 8)
    }
    assert lr == {1: 0.5, 4: 0.5, 5: 0.25, 8: 0.25}
    assert read_options_of_last_start(tmp_path)["optimizer.lr"] == 0.25


def test_a_start_that_left_nothing_behind_is_forgotten_with_its_options(start, tmp_path):
    start(0, 0.5)
    start(4, 0.25)
    start(6, 0.75)
    *kept, last = start(4, 0.125)
    assert [entry["step"] for entry in kept] == [0]
    assert changes(last) == [("optimizer.lr", 0.5, 0.125)]
    assert read_options_that_made_step(tmp_path, 4)["optimizer.lr"] == 0.5
    # from the start again: what was before does not count
    assert start(0, 0.75) == [{"step": 0, "processes": 1, "changed_options": []}]


def test_a_folder_without_records_has_none(tmp_path: Path) -> None:
    assert read_kept_starts(tmp_path) == [] and read_options_of_last_start(tmp_path) == {}
    (tmp_path / "environment.json").write_text("{}")
    assert read_kept_starts(tmp_path) == []


def test_damaged_starts_are_left_out(tmp_path: Path, log: pytest.LogCaptureFixture):
    good = {"step": 4, "changed_options": [{"option": "a.b", "before": 1, "after": 2}]}
    bad = [{"step": "4"}, 7, {"step": 1, "changed_options": [{"option": "a"}]}, {}]
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"starts": [bad[0], good, *bad[1:]]}))
    assert read_kept_starts(tmp_path) == [good]
    assert "4 are passed over" in log.text
    path.write_text('{"starts": 5}')
    assert read_kept_starts(tmp_path) == []
