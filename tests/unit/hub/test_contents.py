"""What is uploaded of a folder: the model, and no path of this machine."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from flame_accel.config import UserError
from flame_accel.hub.contents import (
    add_missing_code_card_logs_and_hide_paths,
    hide_local_paths,
    replace_stage_with_model_files,
)
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.hub.selection import (
    checksum_of_model_files,
    select_files_of_complete_model_or_raise,
    select_model_files_or_raise,
)
from flame_accel.observe.run_folder import write_config_environment_and_clear_ended

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "README.md")
CHECKPOINT = ("manifest.json", "state.json", "data.json", "ranks.json", "rank-0.json")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in MODEL:
        (folder / name).write_text("{}")
    save_file({"weight": torch.ones(8)}, folder / "model.safetensors")
    return folder


def test_of_a_checkpoint_only_the_model_is_uploaded(model):
    for name in CHECKPOINT:
        (model / name).write_text("{}")
    (model / "optimizer").mkdir()
    (model / "optimizer/shard.safetensors").write_text("")
    assert set(select_model_files_or_raise(model).files) == set(MODEL)


def test_of_an_export_only_files_of_a_model_and_what_they_refer_to(model):
    texts = {
        "config.json": '{"auto_map": {"AutoConfig": "mine.A", "AutoModel": "other/repo--its.B"}}',
        "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["words.T", null]}}',
        "README.md": '![](images/loss.png) [my](notes.txt) <img src="b.svg"> (https://host/c.png)',
        "mine.py": "from .parts.layers import X\nimport os\n",
        "parts/layers.py": "from ..top import Y\n",
        "top/__init__.py": "",
        "words.py": "",
    }
    extra = "images/loss.png b.svg custom_code/own/a.py additional_chat_templates/t.jinja"
    extra = (*extra.split(), "merges.txt", "tokenizer.model", "rwkv_vocab_v1.txt", "LICENSE")
    others = "notes.txt training.log extra.json my.py optimizer.pt c.png images/other.png its.py"
    others = (*others.split(), "training_args.bin", "optimizer/0.safetensors")
    for name in (*texts, *extra, *others, ".secret", "custom_code/__pycache__/a.pyc"):
        (model / name).parent.mkdir(exist_ok=True, parents=True)
        (model / name).write_text(texts.get(name, ""))
    selected = select_model_files_or_raise(model)
    assert set(selected.files) == {*MODEL, *texts, *extra}
    assert set(selected.left_out) == set(others)
    assert all(name in (selected.left_out_line or "") for name in others)


def test_the_files_of_every_tokenizer_of_transformers_are_uploaded(model):
    texts = [path.read_text() for path in Path(transformers.__file__).parent.rglob("tokeniz*.py")]
    tables = re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", "".join(texts), re.DOTALL)
    names = {name for table in tables for name in re.findall(r':\s*"([^"]+)"', table)}
    assert len(names) > 10
    for name in names:
        (model / name).write_text("")
    assert select_model_files_or_raise(model).left_out == []


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        select_model_files_or_raise(tmp_path)


def test_linked_files_outlive_the_folder_and_changing_them_does_not_change_it(model, tmp_path):
    stage = tmp_path / "stage"
    before = checksum_of_model_files(model)
    replace_stage_with_model_files(model, stage)
    assert checksum_of_model_files(stage) == before
    shutil.rmtree(model)
    assert json.loads((stage / "config.json").read_text()) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data = '/home/me/data/train.jsonl'", "data = 'train.jsonl'"),
        ("/home/me/data", "data"),
        ("see /home/me/data/a, /home/me/data/b", "see a, b"),
        ("/home/me/database/x", "/home/me/database/x"),
        ("home/me/data/x, ../me/data/x", "home/me/data/x, ../me/data/x"),
        ("https://host/home/me/data/x", "https://host/home/me/data/x"),
    ],
)
def test_paths_are_reduced_to_their_last_part(text, expected):
    assert hide_local_paths(text, ["/home/me/data"]) == expected


def test_links_of_a_cache_snapshot_are_followed_to_its_blobs(model, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0")
    replace_stage_with_model_files(snapshot, tmp_path / "elsewhere/stage")
    stage = tmp_path / "elsewhere/stage"
    assert (stage / "model.safetensors").read_bytes() == (blobs / "0").read_bytes()
    assert not (stage / "model.safetensors").is_symlink()


@pytest.mark.parametrize("target", ["../secret", "nothing"])
def test_links_out_of_the_folder_are_left_out_and_of_the_model_refused(model, tmp_path, target):
    (tmp_path / "secret").write_text("{}")
    (model / "passwd.json").symlink_to(target)
    (model / "same.txt").symlink_to("tokenizer.json")
    selected = select_model_files_or_raise(model)
    assert set(selected.files) == set(MODEL)
    assert set(selected.left_out) == {"passwd.json", "same.txt"}
    (model / "vocab.json").symlink_to(target)
    with pytest.raises(UserError, match=r"vocab\.json: is a link out of the folder"):
        select_model_files_or_raise(model)


def test_a_link_within_the_folder_is_followed(model, tmp_path):
    (model / "vocab.json").symlink_to("tokenizer.json")
    replace_stage_with_model_files(model, tmp_path / "stage")
    assert (tmp_path / "stage/vocab.json").read_text() == "{}"


def test_weights_that_cannot_be_read_and_what_a_save_has_left_are_refused(model, tmp_path):
    left = model.rename(tmp_path / "step-9.tmp-writing")
    with pytest.raises(UserError, match="is not complete"):
        select_files_of_complete_model_or_raise(left)
    model = left.rename(model)
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut, damaged"):
        replace_stage_with_model_files(model, tmp_path / "stage")


def test_paths_are_hidden_in_the_card_and_nowhere_in_tokenizer_and_code(model, monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    texts = {
        "tokenizer.json": '{"added_tokens": [{"content": "/root"}]}',
        "chat_template.jinja": "see /root/x",
        "custom_code/mine.py": 'PATH = "/root/x"',
        "config.json": '{"auto_map": {}, "_name_or_path": "/root/models/a", "text": "/root/x"}',
        "README.md": "trained on /root/data/b",
    }
    for name, text in texts.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(text)
    add_missing_code_card_logs_and_hide_paths(
        model,
        None,
        ModelOrigin(),
        example_repo_id="a/b",
        example_revision="main",
        include_logs=False,
    )
    found = {name: (model / name).read_text() for name in texts}
    assert found == texts | {
        "config.json": '{"auto_map": {}, "_name_or_path": "a", "text": "/root/x"}',
        "README.md": "trained on b",
    }


def test_paths_of_all_options_are_hidden_one_or_several(model, configured, tmp_path):
    own = [tmp_path / "mine.py", tmp_path / "other.py"]
    for path in own:
        path.write_text("")
    run_folder = tmp_path / "run"
    config = configured(**{"model.custom": ",".join(map(str, own))})
    write_config_environment_and_clear_ended(run_folder, config, {})
    (model / "config.json").write_text('{"auto_map": {}}')
    (model / "README.md").write_text(f"{own[0]} {own[1]} {config.training.dataset}")
    add_missing_code_card_logs_and_hide_paths(
        model,
        run_folder,
        ModelOrigin(),
        example_repo_id="a/b",
        example_revision="main",
        include_logs=False,
    )
    assert (model / "README.md").read_text() == "mine.py other.py train.jsonl"


@pytest.mark.parametrize(
    ("revision", "call"),
    [("main", "from_pretrained(path)"), ("dev", 'from_pretrained(path, revision="dev")')],
)
def test_examples_of_the_card_load_what_is_uploaded_but_for_a_path_of_the_user(
    model, revision, call
):
    (model / "config.json").write_text('{"auto_map": {}}')
    card = 'path = "."  # this folder\nmodel = A.from_pretrained(path)\npath = "./mine"\n'
    (model / "README.md").write_text(card)
    place = {"example_repo_id": "a/b", "example_revision": revision}
    add_missing_code_card_logs_and_hide_paths(
        model, None, ModelOrigin(), **place, include_logs=False
    )
    expected = f'path = "a/b"\nmodel = A.{call}\npath = "./mine"\n'
    assert (model / "README.md").read_text() == expected
