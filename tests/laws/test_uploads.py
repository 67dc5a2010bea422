"""A run and the Hub: what it uploads, and that nothing of the Hub changes what the run computes."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from flame_accel.commands import push
from flame_accel.config import UserError
from flame_accel.files import describe_files
from flame_accel.hub.upload_queue import UploadQueue
from flame_accel.stop_signals import StoppedBySignal
from tests.helpers.checkpoints import equal_tensors, read_weights
from tests.helpers.hub_client import REPO
from tests.helpers.hub_server import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN
from tests.helpers.model_files import MODEL
from tests.helpers.runs import ROOT, SHORT_RUN, WITHOUT_SAMPLE, launch, read_log


def push_command(*arguments: object) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    push.add_arguments(parser)
    push.run(parser.parse_args([str(argument) for argument in arguments]))


def every_byte(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.covers_option("hub.repo_id", "hub.private")
def test_the_exported_model_is_on_the_hub_when_the_run_ends(upload_run, local_hub, tmp_path):
    upload_run()
    names = local_hub.file_names(REPO, "main")
    assert set(names) >= set(MODEL)
    assert not any("optimizer" in name or "state" in name or "rank" in name for name in names)
    assert local_hub.repository(REPO).private
    exported = (tmp_path / "run/hf/model.safetensors").read_bytes()
    assert local_hub.read_file(REPO, "model.safetensors", "main") == exported
    record = json.loads((tmp_path / "run/hub.json").read_text())
    assert record["planned"] == [] and record["finished"]["main"]["step"] == 2
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_no_token_and_no_path_of_this_machine_is_written_anywhere(upload_run, local_hub, tmp_path):
    upload_run(**{"hub.include_logs": True})
    assert WRITE_TOKEN.encode() not in every_byte(tmp_path / "run")
    for name in local_hub.file_names(REPO, "main"):
        content = local_hub.read_file(REPO, name, "main")
        assert WRITE_TOKEN.encode() not in content, name
        assert str(tmp_path).encode() not in content, name


@pytest.mark.covers_option("hub.include_logs")
def test_logs_are_uploaded_if_asked_for(upload_run, local_hub, tmp_path):
    upload_run(**{"hub.include_logs": True})
    logs = {name for name in local_hub.file_names(REPO, "main") if name.startswith("training/")}
    assert logs == {"training/config.toml", "training/metrics.jsonl", "training/report.html"}
    upload_run(**{"job.dump_folder": tmp_path / "other", "hub.repo_id": "tester/other"})
    assert not any("training/" in name for name in local_hub.file_names("tester/other", "main"))


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


@pytest.mark.covers_option("hub.wait_seconds")
def test_a_hub_that_goes_down_changes_no_weight_and_ends_no_run(
    upload_run, train_here, flags, local_hub, tmp_path, monkeypatch
):
    from flame_accel import train

    first_save = train.save

    def save_then_lose_the_hub(*arguments, **options):
        first_save(*arguments, **options)
        local_hub.stop()

    train_here(flags(**WITHOUT_SAMPLE, **{"job.dump_folder": tmp_path / "alone"}))
    monkeypatch.setattr(train, "save", save_then_lose_the_hub)
    own = tmp_path / "own.py"
    own.touch()
    options = {"checkpoint.interval": 4, "hub.when": "checkpoint", "model.custom": own}
    options["training.steps"] = 8
    upload_run(**options, **{"hub.wait_seconds": 3})
    alone, run = read_weights(tmp_path / "alone/hf"), read_weights(tmp_path / "run/hf")
    assert equal_tensors(alone, run)
    log = read_log(tmp_path / "run")
    command = f"flame-accel push {tmp_path / 'run/hf'} {REPO} --revision main --custom {own}"
    assert command in log
    assert json.loads((tmp_path / "run/ended.json").read_text())["reason"] == "finished"
    monkeypatch.setattr(train, "save", first_save)
    # the same command once the Hub is back: only the upload is left to do
    before = describe_files(tmp_path / "run/hf")
    local_hub.start()
    upload_run(**options)
    assert (
        local_hub.read_file(REPO, "model.safetensors", "main")
        == (tmp_path / "run/hf/model.safetensors").read_bytes()
    )
    assert describe_files(tmp_path / "run/hf") == before


def test_faults_on_the_way_are_retried(upload_run, local_hub, tmp_path, monkeypatch):
    monkeypatch.setattr("flame_accel.hub.upload_queue.FIRST_RETRY_SECONDS", 0.1)
    local_hub.fail_next(with_status=500, method="POST", path_contains="commit", times=1)
    upload_run()
    assert set(local_hub.file_names(REPO, "main")) >= set(MODEL)
    log = read_log(tmp_path / "run")
    assert "the upload of step 2 failed" in log and "training goes on" not in log


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


def test_a_run_killed_during_an_upload_finishes_it_after_its_restart(
    upload_run, flags, local_hub, tmp_path
):
    local_hub.delay_next(60.0, method="PUT", times=float("inf"))
    options = {**SHORT_RUN, "hub.repo_id": REPO}
    script, pid_file = tmp_path / "train_with_pid.py", tmp_path / "pid"
    script.write_text(TRAIN_WITH_PID.format(pid_file=str(pid_file), script=str(ROOT / "train.py")))

    def kill_in_the_middle() -> None:
        deadline = time.monotonic() + 90
        while not local_hub.requests(method="POST", path_contains="info/lfs"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    launch(
        flags(**options),
        config="cpu",
        processes=1,
        fails=True,
        script=script,
        **local_hub.environment,
    )
    killer.join()
    assert json.loads((tmp_path / "run/hub.json").read_text())["planned"][0]["step"] == 2
    assert "model.safetensors" not in local_hub.file_names(REPO, "main")
    local_hub.heal()
    upload_run(**options)
    assert (
        local_hub.read_file(REPO, "model.safetensors", "main")
        == (tmp_path / "run/hf/model.safetensors").read_bytes()
    )


TRAIN_WITH_PID = """
import os, pathlib, runpy
pathlib.Path({pid_file!r}).write_text(str(os.getpid()))
runpy.run_path({script!r}, run_name="__main__")
"""


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


def test_what_takes_the_place_of_an_upload_is_said(upload_run, local_hub, tmp_path):
    local_hub.delay_next(60.0, method="POST", path_contains="preupload", times=float("inf"))
    options = {"training.steps": 5, "checkpoint.interval": 1, "hub.when": "checkpoint"}
    upload_run(**options, **{"hub.wait_seconds": 0})
    log = read_log(tmp_path / "run")
    assert "checkpoint/step-4 is not uploaded: hf takes its place" in log


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


def test_what_a_user_writes_into_the_card_on_the_hub_stays(upload_run, local_hub, tmp_path):
    local_hub.add_repository(REPO, {"README.md": b"---\nlicense: mit\n---\n"}, private=True)

    def read_card() -> str:
        return local_hub.read_file(REPO, "README.md", "main").decode()

    for steps in (2, 3, 4):
        upload_run(**{"training.steps": steps})
        card = read_card()
        assert f"\n| updates | {steps} |\n" in card and f'path = "{REPO}"' in card
        assert card.count("license: mit") == 1
        assert card.count("Mind the step.") == card.count("By hand.") == (steps > 2)
        if steps == 2:
            edited = card.replace("\n# ", "\nMind the step.\n\n# ", 1) + "By hand.\n"
            upload_by_hand = HfApi().upload_file
            upload_by_hand(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=edited.encode())


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
    upload_run(**{"training.steps": 8})
    assert not local_hub.requests(method="POST")


def test_initial_weights_are_not_uploaded(upload_run, local_hub, tmp_path):
    upload_run(**{"checkpoint.create_seed_checkpoint": True, "hub.when": "checkpoint"})
    assert (tmp_path / "run/checkpoint/step-0").is_dir()
    assert not (tmp_path / "run/hub.json").exists()
    assert "model.safetensors" not in local_hub.file_names(REPO, "main")
