"""A run and the Hub: what it uploads, and that nothing of the Hub changes what the run computes."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from flame_accel.files import describe_files
from tests.helpers.checkpoints import equal_tensors, read_weights
from tests.helpers.hub_client import REPO
from tests.helpers.hub_server import WRITE_TOKEN
from tests.helpers.runs import ROOT, SHORT_RUN, WITHOUT_SAMPLE, launch, read_log


def every_byte(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


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
