"""The run folder: config.toml and environment.json, and what changed since the last start."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.config import Config, UserError, load_run_file, parse
from flame_accel.data.sources.local_files import RUN_FOLDER_FILES
from flame_accel.observe.run_folder import (
    check_run_folder_and_list_changes,
    describe_changed_options,
    write_config_environment_and_clear_ended,
)
from flame_accel.observe.starts import flat_options
from tests.helpers.runs import WITHOUT_SAMPLE, read_losses


@pytest.mark.covers_option("training.steps")
def test_a_second_start_says_which_options_changed(train_here, flags, tmp_path):
    train_here(flags())
    train_here(flags(**{"training.steps": 10, "optimizer.lr": 1e-4}))
    log = (tmp_path / "run/log.txt").read_text()
    assert "changed since the last start: training.steps: 8 -> 10" in log
    assert "optimizer.lr: 0.0003 -> 0.0001" in log
    assert "job.config_file" not in log
    assert max(read_losses(tmp_path / "run")) == 10


def test_only_options_that_differ_are_listed_and_not_the_run_file(configured):
    before = configured(**{"optimizer.lr": 0.5})
    after = configured(**{"optimizer.lr": 0.25, "model.tokenizer_path": "other"})
    changes = describe_changed_options(flat_options(before), flat_options(after))
    assert changes == [
        "model.tokenizer_path: byte -> other",
        "optimizer.lr: 0.5 -> 0.25",
    ]
    assert describe_changed_options(flat_options(after), flat_options(after)) == []


def test_the_folder_holds_the_options_and_the_environment(configured, tmp_path):
    config = configured()
    write_config_environment_and_clear_ended(tmp_path / "a/b", config, {"python": "3"})
    assert load_run_file(tmp_path / "a/b/config.toml") == config
    assert json.loads((tmp_path / "a/b/environment.json").read_text()) == {"python": "3"}


def test_a_folder_that_cannot_be_written_to_is_named(configured, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"job\.dump_folder = .*file/run: .*cannot be written to"):
        write_config_environment_and_clear_ended(tmp_path / "file/run", configured(), {})


def build_config(
    folder: Path, *flags: str, model: str = "org/model", data: str = "org/data"
) -> Config:
    required = [f"--model.config={model}", f"--training.dataset={data}"]
    return parse([*required, f"--job.dump_folder={folder}", *flags])


def prepare(folder: Path, *flags: str, **names: str) -> list[str]:
    config = build_config(folder, *flags, **names)
    changes = check_run_folder_and_list_changes(folder, config)
    write_config_environment_and_clear_ended(folder, config, {})
    return changes


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of a run that has reported metrics."""
    prepare(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        ({"model": "org/other"}, [], "model.config was org/model, and is now org/other"),
        ({"model": "org/model-1.3B"}, [], "model.config was org/model, and is now org/model-1.3B"),
        ({"data": "org/other"}, [], "training.dataset was org/data, and is now org/other"),
        ({}, ["--training.dataset_name=x"], "training.dataset_name was none, and is now x"),
        ({}, ["--model.tokenizer_path=byte"], "model.tokenizer_path was none, and is now byte"),
    ],
)
def test_another_run_does_not_mix_with_the_one_in_the_folder(
    used: Path, names: dict[str, str], flags: list[str], message: str
) -> None:
    before = (used / "config.toml").read_text()
    with pytest.raises(UserError) as caught:
        prepare(used, *flags, **names)
    assert message in str(caught.value)
    assert f"job.dump_folder = {used}" in str(caught.value)
    assert "another job.dump_folder" in str(caught.value)
    assert (used / "config.toml").read_text() == before


def test_the_same_run_is_prepared_again_and_says_what_changed(used: Path) -> None:
    assert prepare(used) == []
    assert prepare(used, "--optimizer.lr=0.1") == ["optimizer.lr: 0.0003 -> 0.1"]


def test_files_that_moved_are_the_same_run(used: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model").mkdir()
        (tmp_path / folder / "model" / "config.json").write_text("{}")
        (tmp_path / folder / "data").mkdir()
    prepare(used, model=str(tmp_path / "one/model"), data=str(tmp_path / "one/data"))
    changes = prepare(used, model=str(tmp_path / "two/model"), data=str(tmp_path / "two/data"))
    assert [change.partition(":")[0] for change in changes] == ["model.config", "training.dataset"]


def test_a_folder_in_which_nothing_has_happened_yet_may_change_its_run(tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    changes = prepare(tmp_path / "run", data="org/other")
    assert changes == ["training.dataset: org/data -> org/other"]


def test_a_checkpoint_alone_keeps_the_folder_for_its_run(tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    (tmp_path / "run" / "checkpoint" / "step-4").mkdir(parents=True)
    with pytest.raises(UserError, match="holds another run"):
        prepare(tmp_path / "run", data="org/other")


def test_a_run_folder_is_known_by_its_files(tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    assert all((tmp_path / "run" / name).is_file() for name in RUN_FOLDER_FILES)


def test_an_option_of_another_version_is_passed_over_and_said(
    finished: Path, configured: Callable[..., object]
):
    toml = finished / "config.toml"
    text = toml.read_text().replace("[checkpoint]", "[checkpoint]\nfrom_the_future = 3", 1)
    toml.write_text(text.replace('scheduler = "', 'scheduler = "a_new_', 1) + "\n[novel]\nx = 1\n")
    changes = check_run_folder_and_list_changes(
        finished, configured(**WITHOUT_SAMPLE, **{"job.dump_folder": finished})
    )
    assert "checkpoint.from_the_future: 3 -> unknown to this version, and passed over" in changes
    assert "novel.x: 1 -> unknown to this version, and passed over" in changes
    assert sum("scheduler" in change for change in changes) == 1
