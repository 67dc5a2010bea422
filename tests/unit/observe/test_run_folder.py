"""The run folder: config.toml and environment.json, and what changed since the last start."""

import importlib.metadata
import json

import pytest

from flame_accel.config import UserError, load_file
from flame_accel.observe import prepare_run_folder, run_folder
from flame_accel.observe.run_folder import changed_options, git_revision, package_versions
from tests.helpers.runs import ROOT, read_losses


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
    changes = changed_options(before, after)
    assert changes == [
        "model.tokenizer_path: byte -> other",
        "optimizer.lr: 0.5 -> 0.25",
    ]
    assert changed_options(after, after) == []


def test_the_folder_holds_the_options_and_the_environment(configured, tmp_path):
    config = configured()
    assert prepare_run_folder(tmp_path / "a/b", config=config, environment={"python": "3"}) == []
    assert load_file(tmp_path / "a/b/config.toml") == config
    assert json.loads((tmp_path / "a/b/environment.json").read_text()) == {"python": "3"}


def test_a_folder_that_cannot_be_written_to_is_named(configured, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"job\.dump_folder = .*file/run: .*cannot be written to"):
        prepare_run_folder(tmp_path / "file/run", config=configured(), environment={})


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(run_folder, "PACKAGES", ("torch", "no-such-package"))
    assert package_versions() == {
        "torch": importlib.metadata.version("torch"),
        "no-such-package": None,
    }


def test_the_revision_is_that_of_the_checkout_and_none_outside(monkeypatch, tmp_path):
    revision = git_revision()
    if (ROOT / ".git").exists():
        assert revision and len(revision["commit"]) == 40 and isinstance(revision["dirty"], bool)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "a/b/c.py"))
    assert git_revision() is None
