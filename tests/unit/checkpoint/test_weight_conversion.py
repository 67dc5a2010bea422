"""Weights under other names than a model of transformers has now are read as transformers does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from flame_accel.checkpoint.tensor_storage import load_weights
from flame_accel.checkpoint.weight_conversion import needs_conversion_by_transformers
from flame_accel.config import UserError
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.transformers_catalogue import tiny_transformers_config


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def build(model_type: str, seed: int, **changes: Any) -> PreTrainedModel:
    return instantiate_on_default_device(tiny_transformers_config(model_type, **changes), seed=seed)


def assert_equal_weights(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    assert all(torch.equal(weights[name], w) for name, w in expected.state_dict().items())


@pytest.mark.parametrize("model_type", ["mixtral", "kimi_linear", "olmo_hybrid"])
def test_weights_that_transformers_renamed_or_merged_are_loaded(model_type, accelerator, tmp_path):
    source, model = build(model_type, 1), build(model_type, 2)
    source.save_pretrained(tmp_path)
    load_weights(accelerator, model, tmp_path)
    assert_equal_weights(model, source)


def test_weights_of_the_base_model_are_loaded(accelerator, tmp_path):
    source, model = build("gpt2", 1), build("gpt2", 2)
    source.base_model.save_pretrained(tmp_path)
    load_weights(accelerator, model, tmp_path)
    assert_equal_weights(model, source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, r"11 tensors missing, such as model\.layers\.1\."),
        ({"num_hidden_layers": 3}, r"11 tensors unknown, such as model\.layers\.2\."),
    ],
)
def test_another_model_is_refused_before_anything_is_overwritten(
    changes, message, accelerator, tmp_path
):
    build("qwen3", 1, **changes).save_pretrained(tmp_path)
    model, before = build("qwen3", 2), build("qwen3", 2)
    with pytest.raises(UserError, match=message):
        load_weights(accelerator, model, tmp_path)
    assert_equal_weights(model, before)


def test_only_models_of_transformers_with_other_names_are_converted():
    llama = build("llama", 0)
    names = set(llama.state_dict())
    assert not needs_conversion_by_transformers(llama, names)
    assert needs_conversion_by_transformers(llama, {f"old.{name}" for name in names})
    tied = build("llama", 0, tie_word_embeddings=True)
    assert not needs_conversion_by_transformers(tied, names - {"lm_head.weight"})
    assert not needs_conversion_by_transformers(
        instantiate_on_default_device(tiny_config("gla")), {"other"}
    )


def test_the_state_of_a_model_is_not_shared_with_what_was_loaded(accelerator, tmp_path: Path):
    source, model = build("mixtral", 1), build("mixtral", 2)
    source.save_pretrained(tmp_path)
    parameters = dict(model.named_parameters())
    load_weights(accelerator, model, tmp_path)
    assert all(parameters[name] is p for name, p in model.named_parameters())
