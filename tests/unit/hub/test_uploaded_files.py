"""Which files are uploaded: those of a model and what they refer to, and none from elsewhere."""

import re
from pathlib import Path

import pytest
import transformers

from flame_accel.config import UserError
from flame_accel.hub.uploaded_files import (
    select_files_of_complete_model_or_raise,
    select_model_files_or_raise,
)
from tests.helpers.model_files import MODEL

CHECKPOINT = ("manifest.json", "state.json", "data.json", "ranks.json", "rank-0.json")


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


def test_weights_that_cannot_be_read_and_what_a_save_has_left_are_refused(model, tmp_path):
    left = model.rename(tmp_path / "step-9.tmp-writing")
    with pytest.raises(UserError, match="is not complete"):
        select_files_of_complete_model_or_raise(left)
    model = left.rename(model)
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut, damaged"):
        select_files_of_complete_model_or_raise(model)
