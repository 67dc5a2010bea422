"""What is uploaded of a folder: the model, and no path of this machine."""

import json
import shutil

import pytest

from flame_accel.config import UserError
from flame_accel.hub.contents import (
    checksum_of_model,
    hide_local_paths,
    link_model_files,
    select_model_files,
)

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "README.md")
CHECKPOINT = ("manifest.json", "state.json", "data.json", "ranks.json", "rank-0.json")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in MODEL:
        (folder / name).write_text("{}")
    return folder


def test_of_a_checkpoint_only_the_model_is_uploaded(model):
    for name in CHECKPOINT:
        (model / name).write_text("{}")
    (model / "optimizer").mkdir()
    (model / "optimizer/shard.safetensors").write_text("")
    assert set(select_model_files(model).files) == set(MODEL)


def test_of_an_export_everything_but_training_state_and_hidden_files(model):
    for name in ("notes.txt", "optimizer.pt", "training_args.bin", ".secret", "images/loss.png"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("")
    selected = select_model_files(model)
    assert set(selected.files) == {*MODEL, "notes.txt", "images/loss.png"}
    assert set(selected.left_out) == {"optimizer.pt", "training_args.bin"}


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        select_model_files(tmp_path)


def test_linked_files_outlive_the_folder_and_changing_them_does_not_change_it(model, tmp_path):
    stage = tmp_path / "stage"
    before = checksum_of_model(model)
    link_model_files(model, stage)
    assert checksum_of_model(stage) == before
    shutil.rmtree(model)
    assert json.loads((stage / "config.json").read_text()) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data = '/home/me/data/train.jsonl'", "data = 'train.jsonl'"),
        ("/home/me/data", "data"),
        ("see /home/me/data/a, /home/me/data/b", "see a, b"),
        ("/home/me/database/x", "/home/me/database/x"),
        ("https://host/home/me/data/x", "https://host/home/me/data/x"),
    ],
)
def test_paths_are_reduced_to_their_last_part(text, expected):
    assert hide_local_paths(text, ["/home/me/data"]) == expected
