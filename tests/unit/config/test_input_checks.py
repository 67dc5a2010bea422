"""Datasets that do not match their options, missing paths, and unusable run folders."""

import os
from pathlib import Path

import pytest

from tests.helpers.options import only_problem


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
