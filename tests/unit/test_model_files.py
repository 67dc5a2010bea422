"""Files of a model that cannot be read are named before anything is built."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flame_accel.model_files import WEIGHTS_INDEX, find_unreadable_or_missing_model_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234567\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"weight": torch.ones(64, 64)}, tmp_path / "model.safetensors")
    return tmp_path


def problem(folder: Path) -> str:
    found = find_unreadable_or_missing_model_file(folder)
    assert found is not None
    return ": ".join(found)


def test_whole_files_have_no_problem(folder):
    assert find_unreadable_or_missing_model_file(folder) is None


def test_a_git_lfs_pointer_is_called_by_its_name_and_its_remedy(folder):
    (folder / "model.safetensors").write_text(POINTER)
    assert "model.safetensors is a Git LFS pointer" in problem(folder)
    assert "git lfs pull" in problem(folder)


@pytest.mark.parametrize("size", [0, 5, 40, 8000])
def test_a_file_that_was_cut_is_damaged_wherever_it_ends(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "model.safetensors is cut, damaged or not a safetensors file" in problem(folder)


def test_a_foreign_file_is_not_taken_for_weights(folder):
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 100)
    assert "not a safetensors file" in problem(folder)


def test_a_shard_that_the_index_names_must_be_there(folder):
    names = {"weight": "model.safetensors", "bias": "model-00002-of-00002.safetensors"}
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": names}))
    assert "1 files that" in problem(folder) and "model-00002-of-00002" in problem(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself: run `git lfs pull`"),
        ('{"a": 1', "is cut, damaged or not JSON"),
        ("", "is cut, damaged or not JSON"),
        ("[1]", "it holds no JSON object"),
    ],
)
def test_config_and_tokenizer_are_read_as_well(folder, name, content, message):
    (folder / name).write_text(content)
    assert problem(folder).startswith(f"{name} ") and message in problem(folder)


def test_a_file_that_is_no_part_of_the_model_is_not_looked_at(folder):
    for name in ("picture.json", "README.md", "results.csv"):
        (folder / name).write_text(POINTER)
    assert find_unreadable_or_missing_model_file(folder) is None


def test_a_folder_without_weights_says_which_are_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "contains no safetensors (pickles are not read)" in problem(folder)
