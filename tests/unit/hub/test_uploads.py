"""Which models of a run are on the Hub, on which branches, and what is said of the others."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from flame_accel.hub.upload_queue import UploadQueue
from flame_accel.stop_signals import StoppedBySignal
from tests.helpers.hub_client import REPO
from tests.helpers.model_files import MODEL
from tests.helpers.runs import read_log


@pytest.mark.covers_option("hub.repo_id", "hub.private")
def test_the_exported_model_is_on_the_hub_when_the_run_ends(upload_run, local_hub, tmp_path):
    upload_run(**{"hub.repo_id": REPO})
    names = local_hub.file_names(REPO, "main")
    assert set(names) >= set(MODEL)
    assert not any("optimizer" in name or "state" in name or "rank" in name for name in names)
    assert local_hub.repository(REPO).private
    exported = (tmp_path / "run/hf/model.safetensors").read_bytes()
    assert local_hub.read_file(REPO, "model.safetensors", "main") == exported
    record = json.loads((tmp_path / "run/hub.json").read_text())
    assert record["planned"] == [] and record["finished"]["main"]["step"] == 2
    assert not list((tmp_path / "run").glob(".tmp-*"))


@pytest.mark.covers_option("hub.when", "hub.revision", "hub.tag")
def test_checkpoints_have_branches_or_tags_of_their_own(upload_run, local_hub, tmp_path):
    options = {"checkpoint.interval": 4, "hub.when": "checkpoint", "hub.revision": "step-{step}"}
    options["training.steps"] = 8
    upload_run(**options, **{"hub.tag": "after-{step}", "checkpoint.keep_latest_k": 1})
    refs = local_hub.repository(REPO)
    assert set(refs.branches) >= {"main", "step-8"}
    assert refs.tags["after-8"] == refs.branches["main"]
    finished = json.loads((tmp_path / "run/hub.json").read_text())["finished"]
    assert {name: done["commit"] for name, done in finished.items()} == {
        name: refs.branches[name] for name in finished
    }
    assert not set(local_hub.file_names(REPO, "step-8")) & {"state.json", "data.json"}
    weights = local_hub.read_file(REPO, "model.safetensors", "step-8")
    assert weights == (tmp_path / "run/hf/model.safetensors").read_bytes()


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_every_branch_that_was_promised_is_made_or_named_at_the_end(
    upload_run, local_hub, tmp_path, monkeypatch, has_hard_links
):
    copying_threads: list[str] = []

    def copy(source: Path, target: Path) -> None:
        copying_threads.append(threading.current_thread().name)
        Path(target).write_bytes(Path(source).read_bytes())

    def raise_on_link(source: Path, target: Path) -> None:
        raise OSError("no hard links here")

    if not has_hard_links:
        monkeypatch.setattr(os, "link", raise_on_link)
        monkeypatch.setattr(shutil, "copyfile", copy)
    options = {
        "training.steps": 8,
        "checkpoint.interval": 2,
        "checkpoint.keep_latest_k": 1,
        "hub.when": "checkpoint",
        "hub.revision": "step-{step}",
    }
    local_hub.delay_next(60.0, method="POST", path_contains="preupload", times=float("inf"))
    upload_run(**options, **{"hub.wait_seconds": 0})
    log = read_log(tmp_path / "run")
    for step in (2, 4, 6, 8):
        assert f"not on the Hub: step {step} (" in log
        assert f"--revision step-{step}" in log
    local_hub.heal()
    upload_run(**options)
    weights = {
        local_hub.read_file(REPO, "model.safetensors", f"step-{step}") for step in (2, 4, 6, 8)
    }
    assert len(weights) == 4
    for branch in ("main", "step-8"):
        exported = (tmp_path / "run/hf/model.safetensors").read_bytes()
        assert local_hub.read_file(REPO, "model.safetensors", branch) == exported
    assert set(copying_threads) <= {"hub-uploads"} and bool(copying_threads) != has_hard_links
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_an_interrupted_wait_for_the_last_upload_says_how_to_finish_it(
    upload_run, local_hub, tmp_path, monkeypatch
):
    def interrupt(queue: UploadQueue[Any], seconds: float) -> list[Any]:
        raise StoppedBySignal("SIGINT", 130)

    local_hub.delay_next(60.0, method="POST", path_contains="preupload", times=float("inf"))
    monkeypatch.setattr(UploadQueue, "retry_at_once_wait_and_list_unfinished", interrupt)
    with pytest.raises(SystemExit) as ended:
        upload_run()
    assert ended.value.code == 130
    assert f"flame-accel push {tmp_path / 'run/hf'} {REPO}" in read_log(tmp_path / "run")
    assert json.loads((tmp_path / "run/ended.json").read_text())["reason"] == "finished"


def test_initial_weights_are_not_uploaded(upload_run, local_hub, tmp_path):
    upload_run(**{"checkpoint.create_seed_checkpoint": True, "hub.when": "checkpoint"})
    assert (tmp_path / "run/checkpoint/step-0").is_dir()
    assert not (tmp_path / "run/hub.json").exists()
    assert "model.safetensors" not in local_hub.file_names(REPO, "main")
