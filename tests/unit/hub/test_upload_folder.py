"""What is uploaded of a folder: the model, and no path of this machine."""

import json
import shutil

import pytest

from flame_accel.hub.model_card import ModelOrigin
from flame_accel.hub.upload_folder import (
    add_missing_code_card_logs_and_hide_paths,
    hide_local_paths,
    replace_stage_with_model_files,
)
from flame_accel.hub.uploaded_files import (
    checksum_of_model_files,
)
from flame_accel.observe.run_folder import write_config_environment_and_clear_ended


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


def test_a_link_within_the_folder_is_followed(model, tmp_path):
    (model / "vocab.json").symlink_to("tokenizer.json")
    replace_stage_with_model_files(model, tmp_path / "stage")
    assert (tmp_path / "stage/vocab.json").read_text() == "{}"


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


def test_logs_hold_the_whole_lines_of_evaluations_and_the_report_shows_them(
    model, configured, tmp_path
):
    run_folder = tmp_path / "run"
    write_config_environment_and_clear_ended(run_folder, configured(), {})
    (run_folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 64, "train/loss": 2.0}\n')
    record = {"step": 1, "tokens": 64, "kind": "lm_eval", "name": "piqa", "metrics": {"acc": 0.5}}
    line = json.dumps(record) + "\n"
    (run_folder / "evaluations.jsonl").write_text(line + line[:9])
    (model / "config.json").write_text('{"auto_map": {}}')
    (model / "README.md").write_text("mine")
    add_missing_code_card_logs_and_hide_paths(
        model,
        run_folder,
        ModelOrigin(),
        example_repo_id="a/b",
        example_revision="main",
        include_logs=True,
    )
    assert (model / "training/evaluations.jsonl").read_text() == line
    assert "piqa" in (model / "training/report.html").read_text()
