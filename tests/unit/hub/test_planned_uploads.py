"""Uploads that a run has planned: each of its own files, again after faults, or replaced."""

from huggingface_hub import HfApi

from tests.helpers.hub_client import REPO
from tests.helpers.model_files import MODEL
from tests.helpers.runs import read_log


def test_an_upload_in_flight_keeps_its_own_files_when_the_run_goes_on(
    upload_run, local_hub, tmp_path
):
    options = {"checkpoint.interval": 100, "hub.when": "checkpoint", "hub.revision": "s-{step}"}
    local_hub.delay_next(60.0, method="POST", path_contains="preupload", times=float("inf"))
    upload_run(**options, **{"training.steps": 4, "hub.wait_seconds": 0})
    fourth = (tmp_path / "run/hf/model.safetensors").read_bytes()
    local_hub.heal()
    # while step 4 is uploaded, the run goes on to step 6
    local_hub.delay_next(3.0, method="POST", path_contains="preupload")
    upload_run(**options, **{"training.steps": 6})
    sixth = (tmp_path / "run/hf/model.safetensors").read_bytes()
    assert local_hub.read_file(REPO, "model.safetensors", "s-4") == fourth != sixth
    assert local_hub.read_file(REPO, "model.safetensors", "s-6") == sixth
    assert local_hub.read_file(REPO, "model.safetensors", "main") == sixth


def test_what_takes_the_place_of_an_upload_is_said(upload_run, local_hub, tmp_path):
    local_hub.delay_next(60.0, method="POST", path_contains="preupload", times=float("inf"))
    options = {"training.steps": 5, "checkpoint.interval": 1, "hub.when": "checkpoint"}
    upload_run(**options, **{"hub.wait_seconds": 0})
    log = read_log(tmp_path / "run")
    assert "checkpoint/step-4 is not uploaded: hf takes its place" in log


def test_faults_on_the_way_are_retried(upload_run, local_hub, tmp_path, monkeypatch):
    monkeypatch.setattr("flame_accel.hub.upload_queue.FIRST_RETRY_SECONDS", 0.1)
    local_hub.fail_next(with_status=500, method="POST", path_contains="commit", times=1)
    upload_run()
    assert set(local_hub.file_names(REPO, "main")) >= set(MODEL)
    log = read_log(tmp_path / "run")
    assert "the upload of step 2 failed" in log and "training goes on" not in log


def test_the_later_of_two_runs_at_once_is_told_what_its_upload_needs(
    upload_run, local_hub, tmp_path, monkeypatch
):
    from flame_accel import train

    first_save = train.save

    def save_while_another_run_uploads(*arguments, **options):
        HfApi().upload_file(
            repo_id=REPO, path_in_repo="model.safetensors", path_or_fileobj=b"theirs"
        )
        first_save(*arguments, **options)

    monkeypatch.setattr(train, "save", save_while_another_run_uploads)
    upload_run()
    *_, end = read_log(tmp_path / "run").partition("not on the Hub: step 2")
    advice, _, command = end.partition("flame-accel push")
    assert "holds a model that this run did not upload" in advice and "--overwrite" in advice
    assert f"{tmp_path / 'run/hf'} {REPO} --revision main" in command
    assert local_hub.read_file(REPO, "model.safetensors") == b"theirs"
