"""What a run may not upload is said before its first step, and before anything changes."""

import json

import pytest

from flame_accel.config import UserError
from tests.helpers.hub_client import REPO, push_command
from tests.helpers.hub_server import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN
from tests.helpers.runs import SHORT_RUN, launch, read_log


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        (REPO, None, "there is no access token"),
        (REPO, "hf_wrong", "does not accept the access token"),
        (REPO, READ_TOKEN, "can only read"),
        (REPO, STRANGER_TOKEN, "you may not write"),
        ("nobody/model", WRITE_TOKEN, "you may not write"),
    ],
)
def test_what_cannot_be_uploaded_is_known_before_the_first_step(
    upload_run, local_hub, tmp_path, monkeypatch, repo_id, token, message
):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message) as raised:
        upload_run(**{"hub.repo_id": repo_id})
    assert f"hub.repo_id = {repo_id}" in str(raised.value)
    assert not (tmp_path / "run").exists()
    assert token is None or token not in str(raised.value)


def test_offline_mode_is_said_at_the_start(upload_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        upload_run()
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_down_at_the_start_is_said_before_anything_is_begun(
    upload_run, local_hub, tmp_path
):
    local_hub.stop()
    with pytest.raises(UserError, match="the Hub does not answer") as raised:
        upload_run()
    assert raised.value.exit_code == 1 and not (tmp_path / "run").exists()


def test_a_refused_start_changes_no_byte_of_a_run(
    upload_run, local_hub, finished, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    # a run that has finished, and one that would train on
    for steps in (8, 12):
        with pytest.raises(UserError, match="access token"):
            upload_run(**{"job.dump_folder": finished, "training.steps": steps})
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_a_refused_start_ends_on_all_ranks_alike(flags, local_hub):
    printed = launch(
        flags(**SHORT_RUN, **{"hub.repo_id": REPO}),
        config="ddp",
        processes=2,
        fails=True,
        **{**local_hub.environment, "HF_TOKEN": READ_TOKEN},
    )
    assert "can only read" in printed and "rank 1: " in printed
    assert "Traceback" not in printed


@pytest.mark.covers_option("hub.overwrite")
def test_a_run_replaces_the_model_of_another_run_only_if_told_to(
    upload_run, local_hub, tmp_path, capsys
):
    upload_run()
    first = local_hub.repository(REPO).branches["main"]
    other = {"job.dump_folder": tmp_path / "other", "training.seed": 7}
    with pytest.raises(UserError, match="the branch main of tester/model holds") as raised:
        upload_run(**other)
    assert "--hub.overwrite" in str(raised.value) and raised.value.exit_code == 2
    assert "push" not in str(raised.value)
    assert not (tmp_path / "other").exists()
    # another branch is free; the same run goes on, also under its short name
    upload_run(**other, **{"hub.revision": "v2"})
    upload_run(**{"training.steps": 4, "hub.repo_id": "model"})
    assert f"uploads to: {local_hub.endpoint}/{REPO}\n" in read_log(tmp_path / "run")
    assert json.loads((tmp_path / "run/hub.json").read_text())["repo_id"] == REPO
    second = local_hub.repository(REPO).branches["main"]
    assert second != first
    with pytest.raises(UserError, match="this run did not upload") as raised:
        push_command(tmp_path / "other", REPO)
    assert " --overwrite" in str(raised.value) and "hub." not in str(raised.value)
    push_command(tmp_path / "other", REPO, "--overwrite")
    exported = (tmp_path / "other/hf/model.safetensors").read_bytes()
    assert local_hub.read_file(REPO, "model.safetensors", "main") == exported
    with pytest.raises(UserError, match="did not upload"):
        upload_run(**{"training.steps": 6})
    upload_run(**{"training.steps": 6, "hub.overwrite": True})
    exported = (tmp_path / "run/hf/model.safetensors").read_bytes()
    assert local_hub.read_file(REPO, "model.safetensors", "main") == exported
