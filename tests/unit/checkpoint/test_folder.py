"""A checkpoint exists whole or not at all, whatever breaks it."""

import json
from pathlib import Path

import pytest

from flame_accel import files
from flame_accel.checkpoint.folder import DAMAGED, SUPERSEDED, CheckpointFolder
from flame_accel.config import UserError
from flame_accel.model_files import find_damage_or_missing_manifest
from tests.helpers.runs import SHORT_RUN


def save(folder: CheckpointFolder, step: int) -> Path:
    draft = folder.create_temporary_folder(step)
    (draft / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (draft / "optimizer").mkdir()
    (draft / "optimizer/shard.safetensors").write_bytes(b"state of step %d" % step)
    return folder.write_manifest_rename_and_prune(step, {"step": step})


def find_and_clean_up(folder: CheckpointFolder, load_step: int) -> Path | None:
    """As a run does that starts: it looks, and cleans up once it has loaded."""
    before = names(folder.path) if folder.path.exists() else []
    found = folder.find_intact_checkpoint(load_step)
    assert before == (names(folder.path) if folder.path.exists() else []), "it only looks"
    folder.delete_leftovers_and_rename_newer(
        found, newer_suffix=SUPERSEDED if load_step >= 0 else DAMAGED
    )
    return found


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoint", keep_latest_k=0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a file is cut": lambda step: cut(step / "model.safetensors"),
    "a bit is flipped": lambda step: flip(step / "optimizer/shard.safetensors"),
    "a file is gone": lambda step: (step / "model.safetensors").unlink(),
    "the manifest is gone": lambda step: (step / "manifest.json").unlink(),
    "the manifest is empty": lambda step: (step / "manifest.json").write_text(""),
    "the manifest is a list": lambda step: (step / "manifest.json").write_text("[]"),
    "the manifest names no files": lambda step: (step / "manifest.json").write_text('{"step": 9}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_never_found(folder, damage):
    older, newer = save(folder, 5), save(folder, 9)
    assert find_and_clean_up(folder, -1) == newer
    DAMAGES[damage](newer)
    assert find_damage_or_missing_manifest(newer) is not None
    assert find_and_clean_up(folder, -1) == older
    assert names(folder.path) == ["step-5", "step-9.damaged-0"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_requested_checkpoint_that_is_damaged_is_an_error_and_is_kept(folder, damage):
    save(folder, 5)
    DAMAGES[damage](save(folder, 9))
    with pytest.raises(UserError, match="step 9"):
        find_and_clean_up(folder, 9)
    assert names(folder.path) == ["step-5", "step-9"]


def test_what_an_interrupted_save_leaves_is_not_a_checkpoint_and_is_removed(folder):
    save(folder, 5)
    (folder.create_temporary_folder(9) / "model.safetensors").write_bytes(b"half")
    assert folder.list_steps_intact_or_damaged() == [5]
    assert find_and_clean_up(folder, -1) == folder.checkpoint_path(5)
    assert names(folder.path) == ["step-5"]


def test_the_newest_is_by_number_and_not_by_name(folder):
    for step in (9, 10, 100):
        save(folder, step)
    assert folder.list_steps_intact_or_damaged() == [9, 10, 100]
    assert find_and_clean_up(folder, -1) == folder.checkpoint_path(100)


def test_pruning_keeps_the_newest_and_happens_after_the_new_one_is_complete(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_latest_k=2)
    for step in (2, 4, 6):
        save(folder, step)
    assert folder.list_steps_intact_or_damaged() == [4, 6]
    folder.create_temporary_folder(8)
    assert folder.list_steps_intact_or_damaged() == [4, 6]


def test_a_save_that_fails_at_the_very_end_costs_no_older_checkpoint(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep_latest_k=2)
    for step in (2, 4):
        save(folder, step)

    def fail(temporary: Path, final: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files, "sync_and_swap_old_into_temporary", fail)
    with pytest.raises(OSError, match="no space left"):
        save(folder, 6)
    assert folder.list_steps_intact_or_damaged() == [2, 4]


def test_the_manifest_lists_every_file(folder):
    step = save(folder, 5)
    files = json.loads((step / "manifest.json").read_text())["files"]
    assert set(files) == {"model.safetensors", "optimizer/shard.safetensors"}
    assert files["model.safetensors"]["size"] == 256 * 40


def test_saving_a_step_again_keeps_the_former_folder_under_another_name(folder):
    save(folder, 5)
    save(folder, 5)
    assert names(folder.path) == ["step-5", "step-5.superseded-0"]


def test_requesting_an_older_step_supersedes_the_newer_ones(folder):
    for step in (2, 4, 6):
        save(folder, step)
    assert find_and_clean_up(folder, 4) == folder.checkpoint_path(4)
    assert find_and_clean_up(folder, -1) == folder.checkpoint_path(4)
    assert names(folder.path) == ["step-2", "step-4", "step-6.superseded-0"]


def test_there_is_nothing_to_find_in_a_new_run(folder):
    assert find_and_clean_up(folder, -1) is None
    with pytest.raises(UserError, match="none"):
        find_and_clean_up(folder, 3)


@pytest.mark.covers_option("checkpoint.interval", "checkpoint.keep_latest_k")
def test_only_the_newest_checkpoints_are_kept(train_here, flags, tmp_path):
    train_here(flags(**{"checkpoint.interval": 2, "checkpoint.keep_latest_k": 2}))
    names = sorted(path.name for path in (tmp_path / "run/checkpoint").iterdir())
    assert names == ["step-6", "step-8"]


@pytest.mark.covers_option("checkpoint.folder")
def test_checkpoints_are_in_the_named_folder(train_here, flags, tmp_path):
    few = SHORT_RUN | {"checkpoint.enable_checkpoint": True, "checkpoint.folder": "kept/here"}
    train_here(flags(**few))
    assert (tmp_path / "run/kept/here/step-2/manifest.json").is_file()
    assert not (tmp_path / "run/checkpoint").exists()
