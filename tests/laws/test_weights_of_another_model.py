"""Nothing is loaded into another model because shapes agree."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flame_accel.config import UserError
from flame_accel.files import describe_files
from tests.helpers.runs import WITHOUT_SAMPLE

TRANSFORMER = {
    "model_type": "transformer",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 258,
}
EDITS: dict[str, Any] = {
    "num_heads": 2,
    "rope_theta": 500000.0,
    "norm_eps": 1e-2,
    "intermediate_size": 128,
    "window_size": 7,
    "tie_word_embeddings": True,
    "qk_norm": True,
    "qkv_bias": True,
    "num_kv_heads": 2,
    "elementwise_affine": False,
    "num_hidden_layers": 3,
    "hidden_size": 32,
}
"""Twelve changes; five leave the names and shapes of all weights as they are."""


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "model.json"
    file.write_text(json.dumps({**TRANSFORMER, **changes}))
    return file


@pytest.fixture
def trained(train_here, flags, tmp_path) -> Path:
    """The folder of a run of a softmax transformer, killed after step 4."""
    train_here(
        flags(**WITHOUT_SAMPLE, **{"model.config": write_config(tmp_path), "training.steps": 4})
    )
    return tmp_path / "run"


def start_is_refused(train_here, options: list[str]) -> str:
    with pytest.raises(UserError) as raised:
        train_here(options)
    return str(raised.value)


def test_another_model_is_refused_by_field_at_a_resume_and_at_a_start(
    train_here, flags, tmp_path, trained
):
    before = describe_files(trained)
    for number, (field, value) in enumerate(EDITS.items()):
        # the same name: the folder of the config has moved
        edited = write_config(tmp_path / f"edited-{number}", **{field: value})
        model = {**WITHOUT_SAMPLE, "model.config": edited, "training.steps": 6}
        resume = start_is_refused(train_here, flags(**model))
        start = {"checkpoint.initial_load_path": trained / "hf", "job.dump_folder": tmp_path / "x"}
        begin = start_is_refused(train_here, flags(**model, **start))
        for message in (resume, begin):
            assert "the weights are those of another model" in message, field
            assert any(line.split()[:1] == [field] for line in message.splitlines()), message
        assert str(value) in begin and str(trained) in resume
        assert not (tmp_path / "x").exists()
    assert describe_files(trained) == before, "a refused start changes nothing"


@pytest.mark.covers_option("checkpoint.accept_differences")
def test_a_difference_that_is_accepted_by_name_is_no_error(train_here, flags, tmp_path, trained):
    longer = write_config(tmp_path / "longer", rope_theta=500000.0)
    options = {
        "model.config": longer,
        "training.steps": 2,
        "checkpoint.initial_load_path": trained / "hf",
        "job.dump_folder": tmp_path / "longer/run",
    }
    train_here(
        flags(**WITHOUT_SAMPLE, **options, **{"checkpoint.accept_differences": "rope_theta"})
    )
    log = (tmp_path / "longer/run/log.txt").read_text()
    assert "rope_theta is 10000.0 there and 500000.0 in this run" in log
    stored = json.loads((tmp_path / "longer/run/hf/config.json").read_text())
    assert stored["rope_theta"] == 500000.0


def test_another_tokenizer_is_refused(train_here, flags, tmp_path, trained):
    other = tmp_path / "weights"
    shutil.copytree(trained / "hf", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = {"model.config": tmp_path / "model.json", "job.dump_folder": tmp_path / "new"}
    start = flags(**options, **{"checkpoint.initial_load_path": other})
    assert "tokenizer" in start_is_refused(train_here, start)


def test_the_weights_bring_their_config_and_tokenizer(train_here, flags, tmp_path, trained):
    options = {
        "model.config": None,
        "model.tokenizer_path": None,
        "training.steps": 2,
        "checkpoint.initial_load_path": trained / "hf",
        "job.dump_folder": tmp_path / "new",
    }
    train_here(flags(**WITHOUT_SAMPLE, **options))
    configs = [
        json.loads((run / "hf/config.json").read_text()) for run in (trained, tmp_path / "new")
    ]
    assert configs[0] == configs[1]


def test_other_data_is_refused_and_changes_nothing(train_here, flags, tmp_path, trained, corpus):
    before = describe_files(trained)
    options = {"model.config": tmp_path / "model.json", "training.steps": 6}
    other = tmp_path / "elsewhere" / corpus.name
    other.parent.mkdir()
    other.write_text(corpus.read_text() + '{"text": "one more document"}\n')
    start_is_refused(train_here, flags(**options, **{"training.dataset": other}))
    assert describe_files(trained) == before
