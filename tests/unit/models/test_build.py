"""Reading a model config and building a model whose vocabulary is the tokenizer's."""

import json
import logging

import pytest
import torch
from transformers import AutoConfig

from flame_accel.config.errors import UserError
from flame_accel.models.build import (
    build_model,
    load_model_config,
    padded_or_stored_embedding_rows_or_raise,
)
from tests.helpers.checkpoints import read_weights
from tests.helpers.model_configs import TINY_GLA, build_small, write
from tests.helpers.runs import ROOT, WITHOUT_SAMPLE

CONFIGS = ROOT / "configs"


def test_a_file_and_the_folder_around_it_give_the_same_config(tmp_path):
    file = write(tmp_path / "config.json", TINY_GLA)
    assert load_model_config(str(file)).to_dict() == load_model_config(str(tmp_path)).to_dict()
    assert load_model_config(str(file)).hidden_size == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "gla",\n "hidden_size": 32,\n}', r"config\.json:3: not valid JSON"),
        ("[1, 2]", "holds a JSON list, not an object"),
        ({"hidden_size": 32}, "has no model_type"),
        ({"model_type": 3}, "model_type 3 is not known"),
        ({"model_type": "gated_deltanett"}, "did you mean gated_deltanet"),
        ({**TINY_GLA, "attn": {"layers": [9], "num_heads": 2}}, "out-of-range layer 9"),
        ({**TINY_GLA, "fuse_linear_cross_entropy": True}, "cannot be True at the same time"),
    ],
    ids=["syntax", "list", "untyped", "number", "typo", "layers", "losses"],
)
def test_a_wrong_config_file_is_refused_with_its_name_and_reason(tmp_path, content, message):
    file = write(tmp_path / "config.json", content)
    with pytest.raises(UserError, match=message) as error:
        load_model_config(str(file))
    assert str(file) in str(error.value)
    assert error.value.exit_code == 2


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_model_config(str(file))


def test_a_missing_file_names_its_neighbours():
    with pytest.raises(UserError, match=r"did you mean .*gla_340M\.json"):
        load_model_config(str(CONFIGS / "gla_430M.json"))


def test_a_folder_without_a_config_is_refused(tmp_path):
    # no file beside it is what was meant
    write(tmp_path / "generation_config.json", {})
    message = r"config\.json: no such file\n    the folder does not say .* --model\.config FILE"
    with pytest.raises(UserError, match=message):
        load_model_config(str(tmp_path))


def test_a_git_lfs_pointer_is_not_read_as_json(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    write(tmp_path / "config.json", pointer)
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        load_model_config(str(tmp_path))


def test_a_hub_name_that_cannot_be_reached_is_refused(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("We couldn't connect\nto the Hub")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"owner/name: .*We couldn't connect\n"):
        load_model_config("owner/name")


@pytest.mark.covers_option("model.trust_remote_code")
def test_code_beside_a_config_runs_only_when_trusted(tmp_path):
    fields = {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig"}}
    write(tmp_path / "config.json", fields)
    write(
        tmp_path / "code.py",
        "from transformers import PreTrainedConfig\n"
        "class OwnConfig(PreTrainedConfig):\n    model_type = 'own'\n",
    )
    with pytest.raises(UserError, match=r"--model\.trust_remote_code"):
        load_model_config(str(tmp_path))


def test_an_unknown_field_is_logged_with_the_nearest_known_one(tmp_path, caplog):
    file = write(tmp_path / "c.json", {**TINY_GLA, "hiden_size": 64})
    with caplog.at_level(logging.WARNING):
        load_model_config(str(file))
    assert "no field 'hiden_size'; did you mean 'hidden_size'?" in caplog.text


@pytest.mark.parametrize("model_type", ["gla", "gsa", "rwkv7", "mamba2", "llama"])
def test_a_config_that_transformers_saved_has_no_unknown_field(tmp_path, caplog, model_type):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="flame_accel"):
        load_model_config(str(tmp_path))
    assert caplog.text == ""


def test_the_vocabulary_and_special_tokens_follow_the_tokenizer():
    config = AutoConfig.for_model(**TINY_GLA)
    model = build_small(
        config, vocabulary_size=53, bos_token_id=50, eos_token_id=51, pad_token_id=52
    )
    assert model.get_input_embeddings().weight.shape == (53, 32)
    assert model.get_output_embeddings().weight.shape == (53, 32)
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (50, 51, 52)
    assert config.vocab_size == 40


@pytest.mark.parametrize(
    ("ids", "stored_rows", "expected"),
    [(64, None, 64), (65, None, 128), (65, 65, 65), (65, 320, 320)],
)
def test_only_fresh_weights_are_padded_to_a_multiple(ids, stored_rows, expected):
    assert (
        padded_or_stored_embedding_rows_or_raise(ids, multiple=64, stored_rows=stored_rows)
        == expected
    )


def test_stored_weights_with_fewer_rows_than_ids_are_refused():
    with pytest.raises(UserError, match=r"have 64 rows .* has 65 ids"):
        padded_or_stored_embedding_rows_or_raise(65, multiple=64, stored_rows=64)


@pytest.mark.covers_option("training.vocab_multiple")
def test_the_vocabulary_is_padded_once_and_stays(train_here, flags, tmp_path):
    model = {
        **WITHOUT_SAMPLE,
        "model.config": write(tmp_path / "model.json", TINY_GLA),
        "training.steps": 2,
    }
    train_here(flags(**model, **{"training.vocab_multiple": 64}))
    assert read_weights(tmp_path / "run/hf")["lm_head.weight"].shape == (320, 32)
    options = {
        "checkpoint.initial_load_path": tmp_path / "run/hf",
        "job.dump_folder": tmp_path / "next",
    }
    train_here(flags(**model, **options))
    assert read_weights(tmp_path / "next/hf")["lm_head.weight"].shape == (320, 32)
    assert json.loads((tmp_path / "next/hf/config.json").read_text())["vocab_size"] == 320


@pytest.mark.parametrize("model_type", ["gla", "llama"])
def test_a_pad_token_that_is_the_end_of_a_document_keeps_its_row_of_the_embedding(model_type):
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    fields = {**TINY_GLA, "model_type": model_type, "pad_token_id": 2}
    config = AutoConfig.for_model(**fields, **(sizes if model_type == "llama" else {}))
    model = build_small(config, bos_token_id=2, eos_token_id=2, pad_token_id=2)
    assert model.get_input_embeddings().padding_idx is None
    assert model.get_input_embeddings().weight[2].abs().sum() > 0
    assert model.generation_config.pad_token_id == 2


def test_weights_are_float32_on_the_cpu_whatever_the_config_or_context_says():
    config = AutoConfig.for_model(**TINY_GLA, dtype="bfloat16")
    with torch.device("meta"):
        model = build_small(config)
    assert model.config.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def build_trained(model_type: str, trained_length: int, **fields):
    config = AutoConfig.for_model(model_type, **fields)
    return build_model(
        config,
        vocabulary_size=64,
        bos_token_id=None,
        eos_token_id=0,
        seed=1,
        trained_length=trained_length,
    )


SMALL_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(("trained_length", "expected"), [(64, 128), (128, 128), (4096, 4096)])
def test_the_config_knows_the_length_that_the_model_is_trained_on(trained_length, expected):
    fields = {**TINY_GLA, "max_position_embeddings": 128}
    del fields["model_type"]
    gla = build_trained("gla", trained_length, **fields)
    llama = build_trained("llama", trained_length, **SMALL_LLAMA)
    for model in (gla, llama):
        assert model.config.max_position_embeddings == expected


def test_a_longer_length_changes_neither_weights_nor_results():
    short = build_trained("llama", 128, **SMALL_LLAMA)
    long = build_trained("llama", 4096, **SMALL_LLAMA)
    ids = torch.arange(32)[None]
    assert torch.equal(short(ids).logits, long(ids).logits)
    again = type(long)(long.config)
    again.load_state_dict(long.state_dict())
    assert torch.equal(again(ids).logits, long(ids).logits)


def test_a_length_that_means_more_than_a_length_stays():
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build_trained("llama", 4096, **SMALL_LLAMA, rope_parameters=scaled)
    assert model.config.max_position_embeddings == 128
