"""A checkpoint exists whole or not at all, whatever breaks it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flame_accel import files
from flame_accel.checkpoint.folder import DAMAGED, SUPERSEDED, CheckpointFolder
from flame_accel.checkpoint_files import find_damage
from flame_accel.config import UserError
from tests.helpers.checkpoints import LOOKALIKES
from tests.helpers.runs import SHORT_RUN


def save(folder: CheckpointFolder, step: int) -> Path:
    draft = folder.create_temporary_folder(step)
    save_file({"weight": np.arange(64.0)}, draft / "model.safetensors")
    (draft / "optimizer").mkdir()
    save_file({"weight.step": np.full(1, step)}, draft / "optimizer/shard.safetensors")
    return folder.write_manifest_rename_and_prune(step, {"step": step})


def find_and_clean_up(folder: CheckpointFolder, load_step: int) -> Path | None:
    """As a run does that starts: it looks, and cleans up once it has loaded."""
    before = names(folder.path) if folder.path.exists() else []
    if load_step < 0:
        found = folder.find_newest_intact_checkpoint()
    else:
        found = folder.find_checkpoint_of_step(load_step)
    assert before == (names(folder.path) if folder.path.exists() else []), "it only looks"
    folder.delete_leftovers_and_rename_newer(
        found, newer_suffix=SUPERSEDED if load_step >= 0 else DAMAGED
    )
    return found


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def steps(folder: CheckpointFolder) -> list[int]:
    return list(folder.list_entries().checkpoints)


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
    assert find_damage(newer) is not None
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
    assert steps(folder) == [5]
    assert find_and_clean_up(folder, -1) == folder.checkpoint_path(5)
    assert names(folder.path) == ["step-5"]


def test_the_newest_is_by_number_and_not_by_name(folder):
    for step in (9, 10, 100):
        save(folder, step)
    assert steps(folder) == [9, 10, 100]
    assert find_and_clean_up(folder, -1) == folder.checkpoint_path(100)


def test_pruning_keeps_the_newest_and_happens_after_the_new_one_is_complete(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_latest_k=2)
    for step in (2, 4, 6):
        save(folder, step)
    assert steps(folder) == [4, 6]
    folder.create_temporary_folder(8)
    assert steps(folder) == [4, 6]


def test_a_save_that_fails_at_the_very_end_costs_no_older_checkpoint(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep_latest_k=2)
    for step in (2, 4):
        save(folder, step)

    def fail(temporary: Path, final: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files, "sync_then_rename_or_swap_with_existing", fail)
    with pytest.raises(OSError, match="no space left"):
        save(folder, 6)
    assert steps(folder) == [2, 4]


def test_the_manifest_lists_every_file(folder):
    step = save(folder, 5)
    files = json.loads((step / "manifest.json").read_text())["files"]
    assert set(files) == {"model.safetensors", "optimizer/shard.safetensors"}
    assert files["model.safetensors"]["size"] == (step / "model.safetensors").stat().st_size


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


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_checkpoint_can_be_used_the_run_does_not_begin_anew(folder, damage):
    """With exit code 2: the command is right, and the user has to decide."""
    DAMAGES[damage](save(folder, 5))
    with pytest.raises(UserError, match="none of them can be used:\n    step-5: ") as raised:
        find_and_clean_up(folder, -1)
    assert raised.value.exit_code == 2 and "begin anew on purpose" in str(raised.value)
    assert names(folder.path) == ["step-5"]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_only_looks_like_a_checkpoint_is_passed_over_and_kept(folder, name, caplog):
    folder.keep_latest_k = 2
    LOOKALIKES[name](folder.path, save(folder, 5))
    caplog.set_level("WARNING", logger="flame_accel")
    assert find_and_clean_up(folder, -1) == folder.checkpoint_path(5)
    assert [name in record.message for record in caplog.records] == [True]
    for step in (6, 8):
        save(folder, step)
    assert set(names(folder.path)) == {"step-6", "step-8", name}


def test_a_link_to_a_checkpoint_is_not_used_and_no_reason_to_begin_anew(folder):
    LOOKALIKES["step-1000"](folder.path, save(folder, 5))
    shutil.rmtree(folder.checkpoint_path(5))
    with pytest.raises(UserError, match="step-1000: it is a link"):
        find_and_clean_up(folder, -1)


def test_a_copy_under_a_higher_number_is_not_the_newest(folder):
    older, newer = save(folder, 5), save(folder, 9)
    shutil.copytree(older, folder.checkpoint_path(1000))
    assert find_and_clean_up(folder, -1) == newer
    assert names(folder.path) == ["step-1000.damaged-0", "step-5", "step-9"]


def test_pruning_does_not_count_what_is_not_complete(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_latest_k=2)
    save(folder, 2)
    (save(folder, 4) / "model.safetensors").unlink()
    # put there while the run goes on
    shutil.copytree(folder.checkpoint_path(2), folder.checkpoint_path(1000))
    save(folder, 6)
    assert steps(folder) == [2, 4, 6, 1000]
    save(folder, 8)
    assert steps(folder) == [6, 8, 1000]


def test_a_step_is_saved_whatever_lies_in_its_place(folder):
    folder.path.mkdir()
    folder.checkpoint_path(5).symlink_to("nowhere")
    folder.checkpoint_path(6).write_text("a file")
    folder.checkpoint_path(7).mkdir()
    for step in (5, 6, 7):
        assert find_damage(save(folder, step), step=step) is None
    assert names(folder.path) == sorted(
        name for step in (5, 6, 7) for name in (f"step-{step}", f"step-{step}.superseded-0")
    )


def test_temporary_folders_are_those_of_one_start(tmp_path):
    first, second = (CheckpointFolder(tmp_path, keep_latest_k=0) for _ in range(2))
    of_ranks = {
        CheckpointFolder(tmp_path, keep_latest_k=0, start_token="0" * 16).temporary_path(5)
        for _ in range(2)
    }
    assert len({first.temporary_path(5), second.temporary_path(5), *of_ranks}) == 3
    for folder in (first, second):
        (folder.create_temporary_folder(5) / "half").touch()
    (tmp_path / "step-5.tmp-writing").mkdir()
    assert len(first.list_entries().leftovers) == 3
    first.delete_leftovers_and_rename_newer(None, newer_suffix=DAMAGED)
    assert names(tmp_path) == []


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


def best_of(folder: CheckpointFolder) -> str | None:
    link = folder.path / "best"
    return os.readlink(link) if link.is_symlink() else None


def test_the_best_checkpoint_is_linked_and_stays_until_a_better_one_is_complete(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep_latest_k=1)
    found = []
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)):
        folder.best_step = best
        save(folder, step)
        found.append((steps(folder), best_of(folder)))
    assert found == [
        ([1], None),
        ([2], "step-2"),
        ([2, 3], "step-2"),
        ([2, 4], "step-2"),
        ([5], "step-5"),
        ([5, 6], "step-5"),
    ]
    assert find_damage(tmp_path / "best") is None
    assert folder.find_newest_intact_checkpoint() == tmp_path / "step-6"


def test_the_best_checkpoint_stays_if_the_better_one_cannot_be_saved(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep_latest_k=1)
    folder.best_step = 1
    save(folder, 1)
    # that of step 2 is known to be better, and its save fails
    folder.best_step = 2
    save(folder, 3)
    assert (steps(folder), best_of(folder)) == ([1, 3], "step-1")


def test_what_has_the_name_of_the_link_costs_no_checkpoint(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep_latest_k=1)
    (tmp_path / "best").mkdir()
    folder.best_step = 1
    save(folder, 1)
    save(folder, 2)
    assert steps(folder) == [1, 2] and names(tmp_path / "best") == []
