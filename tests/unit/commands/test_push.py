"""`flame-accel push`: what it uploads and records, what it refuses, folders nobody may write to."""

import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from flame_accel.__main__ import main
from flame_accel.commands.push import record_push_unless_run_uploads_elsewhere
from flame_accel.config import UserError
from flame_accel.hub import upload_folder
from flame_accel.hub.upload_record import UploadRecord, read_upload_record_or_empty
from tests.helpers.hub_client import push_command
from tests.helpers.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from tests.helpers.runs import WITHOUT_SAMPLE

REPO = "tester/pushed"


@pytest.mark.parametrize(
    ("token", "words", "message"),
    [
        (READ_TOKEN, "RUN tester/pushed", "can only read"),
        (WRITE_TOKEN, "RUN stranger/x", "you may not write"),
        (WRITE_TOKEN, "RUN tester/open", "is public"),
        (WRITE_TOKEN, "nowhere tester/pushed", "no such folder"),
        (WRITE_TOKEN, "RUN a/b/c", "must be NAMESPACE/NAME"),
        (WRITE_TOKEN, "RUN ''", "must be NAMESPACE/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_said_without_a_traceback(
    local_hub: HubServer,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
    words: str,
    message: str,
) -> None:
    local_hub.add_repository("tester/open")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit) as ended:
        main(["push", *shlex.split(words.replace("RUN", str(finished)))])
    printed = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert message in printed
    assert token not in printed and "Traceback" not in printed


def test_a_damaged_checkpoint_is_not_pushed(
    local_hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished / "checkpoint/step-8/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SystemExit):
        main(["push", str(weights.parent), REPO])
    assert "is damaged: model.safetensors" in capsys.readouterr().err
    assert not local_hub.requests()


def test_a_folder_that_nobody_may_write_to_is_pushed_and_stays_as_it_is(
    local_hub: HubServer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def deny_write_access(path: Any, mode: int, **options: Any) -> bool:
        asked.append(Path(path))
        return mode != os.W_OK

    monkeypatch.setattr(os, "access", deny_write_access)
    before = sorted(finished.rglob("*"))
    main(["push", str(finished / "hf"), REPO])
    assert finished in asked and sorted(finished.rglob("*")) == before
    assert "model.safetensors" in local_hub.file_names(REPO)


def test_files_that_are_not_the_model_are_named_and_stay_here(
    local_hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "hf/notes.txt").write_text("mine")
    (finished / "hf/passwd.json").symlink_to("/etc/passwd")
    main(["push", str(finished), REPO])
    assert "no part of the model: notes.txt, passwd.json\n" in capsys.readouterr().out
    names = {path.name for path in (finished / "hf").iterdir()} - {"notes.txt", "passwd.json"}
    assert set(local_hub.file_names(REPO)) - {".gitattributes"} == names


def test_an_upload_does_not_publish_a_repository_that_exists(
    local_hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local_hub.add_repository(REPO, private=True)
    main(["push", str(finished), REPO, "--public"])
    assert "is private and stays so" in capsys.readouterr().out
    assert local_hub.repository(REPO).private


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "the upload was interrupted"),
    ],
)
def test_a_push_that_cannot_end_says_which_command_finishes_it(
    local_hub: HubServer,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(upload_folder, "replace_stage_with_model_files", fail)
    with pytest.raises(SystemExit) as ended:
        main(["push", str(finished), REPO, "--tag", "v1"])
    assert ended.value.code == code
    printed = capsys.readouterr().err
    assert message in printed
    assert f"flame-accel push {finished} {REPO} --revision main --tag v1" in printed


def test_a_file_with_the_access_token_is_named_before_there_is_a_repository(
    local_hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (finished / "hf/README.md").open("a") as card:
        card.write(WRITE_TOKEN)
    with pytest.raises(SystemExit) as ended:
        main(["push", str(finished), REPO])
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "remove it from README.md" in printed and WRITE_TOKEN not in printed
    assert not local_hub.requests()


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_the_weights_that_are_there_are_pushed_again_without_a_record_and_no_others(
    local_hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    main(["push", str(finished), REPO])
    record = finished / "hub.json"
    record.unlink()
    if content is not None:
        record.write_text(content)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["push", str(finished / "checkpoint/step-4"), REPO])
    printed = capsys.readouterr()
    assert "did not upload" in printed.err and "hub.json" in printed.out
    main(["push", str(finished), REPO])
    assert "hub.json" in capsys.readouterr().out
    assert json.loads(record.read_text())["finished"]["main"]["step"] == 8


def test_a_push_to_another_repository_leaves_the_record_of_the_run_as_it_is(tmp_path: Path) -> None:
    record = UploadRecord(repo_id="a/b", checkpoints_since_upload=2)
    record_push_unless_run_uploads_elsewhere(tmp_path, record)
    record_push_unless_run_uploads_elsewhere(tmp_path, UploadRecord(repo_id="a/other"))
    assert read_upload_record_or_empty(tmp_path, "a/b", report_damage=print) == record


def copy_of_export(run: Path) -> Path:
    return Path(shutil.copytree(run / "hf", run.with_name("copied")))


def test_step_in_a_branch_or_tag_stands_for_the_step_of_the_model(
    local_hub: HubServer, finished: Path
) -> None:
    names = ["--revision", "step-{step}", "--tag", "t{step}"]
    main(["push", str(finished / "checkpoint/step-4"), REPO, *names])
    main(["push", str(finished), REPO, *names])
    repository = local_hub.repository(REPO)
    assert set(repository.branches) == {"main", "step-4", "step-8"}
    assert set(repository.tags) == {"t4", "t8"}


@pytest.mark.parametrize(
    "words", [("--revision", "s-{step}"), ("--tag", "t{step}"), ("--include-logs",)]
)
def test_what_only_a_run_has_is_refused_for_a_model_without_one(
    local_hub: HubServer, finished: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push", str(copy_of_export(finished)), REPO, *words])
    assert ended.value.code == 2
    assert " ".join(words) in capsys.readouterr().err
    assert not local_hub.requests()


def test_the_command_uploads_a_run_a_checkpoint_and_an_export(
    train_here, flags, local_hub, tmp_path, capsys
):
    train_here(flags(**WITHOUT_SAMPLE))
    run = tmp_path / "run"
    push_command(run, "tester/run")
    push_command(run / "checkpoint/step-4", "tester/run", "--revision", "step-4", "--tag", "early")
    push_command(run / "hf", "tester/public", "--public", "--include-logs", "--message", "First")
    printed = capsys.readouterr().out
    assert "uploaded" in printed and "/tester/run" in printed
    assert (
        local_hub.read_file("tester/run", "model.safetensors", "main")
        == (run / "hf/model.safetensors").read_bytes()
    )
    assert not {"state.json", "manifest.json"} & set(local_hub.file_names("tester/run", "step-4"))
    assert "README.md" in local_hub.file_names("tester/run", "step-4")
    assert not local_hub.repository("tester/public").private
    assert not list(run.glob(".tmp-*")) and not list(run.glob("checkpoint/.tmp-*"))
    with pytest.raises(UserError, match="no such folder"):
        push_command(tmp_path / "nowhere", "tester/run")


def test_a_push_is_recorded_like_an_upload_of_the_run(
    upload_run, train_here, flags, local_hub, tmp_path
):
    train_here(flags(**WITHOUT_SAMPLE))
    push_command(tmp_path / "run/checkpoint/step-4", REPO, "--revision", "step-4")
    push_command(tmp_path / "run", REPO)
    branches = local_hub.repository(REPO).branches
    record = json.loads((tmp_path / "run/hub.json").read_text())
    for branch, source, step in (("step-4", "checkpoint/step-4", 4), ("main", "hf", 8)):
        done = record["finished"][branch]
        assert (done["source"], done["step"], done["commit"]) == (source, step, branches[branch])
    local_hub.forget_requests()
    upload_run(**{"training.steps": 8, "hub.repo_id": REPO})
    assert not local_hub.requests(method="POST")
