"""A model is found by folder or name, and one that is none is said to be none."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from flame_accel import hub_lookup
from flame_accel.__main__ import main
from flame_accel.commands.loaded_model import (
    ModelSource,
    find_model,
    load_model_and_tokenizer,
)
from flame_accel.config import UserError
from flame_accel.data import load_tokenizer
from tests.helpers.model_configs import tiny_generator


def test_a_run_folder_is_its_export_or_its_newest_checkpoint(finished):
    assert find_model(str(finished)) == ModelSource(str(finished / "hf"), None)
    assert find_model(str(finished / "hf")) == ModelSource(str(finished / "hf"), None)
    step = finished / "checkpoint/step-4"
    assert find_model(str(step)) == ModelSource(str(step), None)
    (finished / "hf").rename(finished / "elsewhere")
    newest = finished / "checkpoint/step-8"
    assert find_model(str(finished)) == ModelSource(str(newest), None)
    (newest / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"step-8: is damaged: data\.json"):
        find_model(str(newest))
    with pytest.raises(UserError, match=r"no such model folder\n.*step-4, step-8"):
        find_model(str(finished / "checkpoint/step-9"))


def test_other_names_are_those_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(
        hub_lookup,
        "check_model_exists_if_hub_reachable",
        lambda name, **_: asked.append(name) or is_reachable,
    )
    is_reachable = True
    assert find_model("owner/model") == ModelSource("owner/model", None)
    assert find_model("owner/model@step-100") == ModelSource("owner/model", "step-100")
    assert asked == ["owner/model", "owner/model@step-100"]
    is_reachable = False
    with pytest.raises(UserError, match="not in the local cache, and the Hub cannot be reached"):
        find_model("owner/model")


@pytest.mark.parametrize("name", ["nothing", "./owner/model", "/no/model", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_refused(name):
    with pytest.raises(UserError, match="no such model folder"):
        find_model(name)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(UserError, match="contains no complete checkpoint"):
        find_model(str(tmp_path))


def load(folder: Path, **options: object) -> object:
    given = {"dtype": None, "device": "cpu", "custom_modules": [], "trust_remote_code": False}
    return load_model_and_tokenizer(ModelSource(str(folder), None), **{**given, **options})


def write_model(folder: Path) -> None:
    load_tokenizer("byte", False).save_pretrained(folder)
    tiny_generator("gla", vocab_size=258).save_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "contains no safetensors"),
        ("config.json", "contains no complete checkpoint"),
    ],
)
def test_a_folder_without_weights_or_config_is_no_model(tmp_path, name, message):
    write_model(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=message):
        find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "is a Git LFS pointer"),
        (None, "is cut, damaged or not"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    write_model(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match=rf"{name} {message}"):
        find_model(str(tmp_path))


def test_an_unknown_architecture_is_told_how_to_register(tmp_path):
    write_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"gla"', '"my_own"'))
    with pytest.raises(UserError, match=r"cannot be loaded: .*my_own.*\n.*--custom"):
        load(tmp_path)


def test_a_revision_of_the_hub_is_the_one_that_generates(finished, local_hub, capsys):
    repository, hub = "tester/gla", HfApi()
    hub.create_repo(repository)
    hub.upload_folder(repo_id=repository, folder_path=finished / "checkpoint/step-4")
    hub.create_branch(repository, branch="end")
    hub.upload_folder(repo_id=repository, folder_path=finished / "hf", revision="end")
    options = ["--prompt=abc", "--temperature=0", "--max_new_tokens=8", "--device=cpu"]
    texts = {}
    for name in (finished / "checkpoint/step-4", repository, finished / "hf", f"{repository}@end"):
        main(["generate", str(name), *options])
        texts[str(name)] = capsys.readouterr().out
    first, main_branch, last, branch = texts.values()
    assert first == main_branch and last == branch and first != last


def test_a_name_or_revision_that_the_hub_lacks_is_refused(local_hub):
    with pytest.raises(UserError, match="does not exist here, nor on the Hub"):
        find_model("tester/nothing")
    HfApi().create_repo("tester/gla")
    with pytest.raises(UserError, match="has no revision 'nothing'"):
        find_model("tester/gla@nothing")
