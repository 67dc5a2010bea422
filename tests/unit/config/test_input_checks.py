"""Datasets that do not match their options, missing paths, and unusable run folders."""

import os
from pathlib import Path

import pytest

from flame_accel.config import ConfigError, parse
from tests.helpers.options import only_problem, parse_flags
from tests.helpers.runs import ROOT


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--model.config ./missing", "./missing does not exist"),
        ("--model.config missing.json", "missing.json does not exist"),
        ("--training.dataset /missing/*.jsonl", "does not exist"),
        ("--model.custom ./missing.py", "does not exist"),
        ("--training.data_probs 0.5,0.5", "has 2 numbers for 1 dataset"),
        ("--training.dataset a,b", "is required for 2 datasets"),
        ("--training.dataset a,,b --training.data_probs 1,1,1", "empty name between commas"),
        ("--training.dataset a,/b/c --training.data_probs 1,1", "/b/c does not exist"),
        (
            "--training.dataset a,b --training.data_probs 1,1 --training.data_dir x",
            "has 1 entries for 2 datasets",
        ),
    ],
)
def test_inputs_that_cannot_work_are_refused(flags: str, rule: str) -> None:
    message = only_problem(*flags.split(" "))
    assert message.startswith("--")
    assert rule in message
    assert "\n    " in message


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "is a file" in only_problem("--job.dump_folder", str(tmp_path / "taken"))
    assert "is a file" in only_problem("--job.dump_folder", str(tmp_path / "taken/run"))


def test_a_run_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tests may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = only_problem("--job.dump_folder", str(tmp_path / "new/run"))
    assert f"{tmp_path} cannot be written to" in message


@pytest.mark.parametrize(
    "name",
    ["gla_34M.json", "configs/gla_350M.json", "./gla_340M", "/nowhere/gla", "a/b/c", "gla_430M"],
)
def test_a_model_that_can_only_be_a_missing_path_is_refused_at_once(name: str) -> None:
    problem = only_problem(f"--model.config={name}")
    assert f"{name} does not exist" in problem
    assert "A model on the Hub is owner/name." in problem


@pytest.mark.parametrize("name", ["org/model", "gla_340M", "configs/gla_340M.json"])
def test_a_model_that_may_exist_is_accepted(name: str) -> None:
    config = parse_flags(f"--model.config={name}", "--model.tokenizer_path=byte")
    assert config.model.config == name


def test_a_missing_path_gets_the_nearest_existing_names(tmp_path: Path) -> None:
    for name in ("model_small.json", "model_large.json", "other.txt"):
        (tmp_path / name).write_text("{}")
    problem = only_problem(f"--model.config={tmp_path}/model_smal.json")
    assert f"Did you mean {tmp_path}/model_small.json" in problem
    assert "other.txt" not in problem
    problem = only_problem(f"--training.dataset={tmp_path}/othr.txt")
    assert f"Did you mean {tmp_path}/other.txt?" in problem
    assert "Did you mean gla_340M" in only_problem("--model.config=gla_340m")


@pytest.mark.parametrize(
    "option", ["model.tokenizer_path", "evaluation.dataset", "checkpoint.initial_load_path"]
)
def test_a_name_with_two_slashes_is_a_path(option: str) -> None:
    assert "a/b/c does not exist" in only_problem(f"--{option}=a/b/c")
    parse_flags(f"--{option}=a/b")


def test_the_folder_of_the_data_is_not_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = f"--training.dataset={tmp_path}/data"
    assert "is the folder of the data" in only_problem(data, f"--job.dump_folder={tmp_path}/data/")
    parse_flags(data, f"--job.dump_folder={tmp_path}/data/run")


@pytest.mark.parametrize("name", ["gla_1M", "configs/gla_1M.json"])
def test_a_preset_or_a_file_without_a_tokenizer_is_refused_at_once(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"model.tokenizer_path: is required: .* no tokenizer"):
        parse(["--model.config", name, "--training.dataset", "python-stdlib"])


def test_a_folder_may_hold_the_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    parse(["--model.config", str(tmp_path), "--training.dataset", "python-stdlib"])
