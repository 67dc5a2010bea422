"""Which config fields decide what a trained model computes."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Zamba2Config

from flame_accel.models.build import build_model
from flame_accel.models.catalogue import fla_config_classes, tiny_config
from flame_accel.models.config_fields import (
    IMPLEMENTATION_FIELDS,
    INITIALIZATION_FIELDS,
    FieldDifference,
    find_decisive_differences,
)
from flame_accel.models.norms import copy_config_with_norm

DECISIVE_CHANGES: dict[str, Any] = {
    "num_heads": 4,
    "rope_theta": 500000.0,
    "norm_eps": 1e-2,
    "hidden_act": "relu",
    "tie_word_embeddings": True,
    "window_size": 7,
    "num_hidden_layers": 3,
    "vocab_size": 77,
}


def changed_value(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1e-3
    return value


@pytest.mark.parametrize("model_type", sorted(fla_config_classes()))
def test_fields_that_are_not_decisive_do_not_change_what_a_model_computes(model_type):
    config = tiny_config(model_type, use_cache=False)
    harmless = {
        name: changed_value(value)
        for name, value in config.to_dict().items()
        if name in INITIALIZATION_FIELDS | IMPLEMENTATION_FIELDS
        # some models refuse a cache, the two losses exclude each other, Samba fails to rescale
        and name not in ("use_cache", "fuse_linear_cross_entropy")
        and (model_type, name) != ("samba", "rescale_prenorm_residual")
    }
    other = tiny_config(model_type, use_cache=False, **harmless)
    assert find_decisive_differences(other.to_dict(), config) == []
    built = {
        "vocabulary_size": config.vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "seed": 1,
    }
    model, changed = build_model(config, **built).eval(), build_model(other, **built).eval()
    changed.load_state_dict(model.state_dict())
    ids = torch.arange(32).reshape(2, 16) % config.vocab_size
    with torch.no_grad():
        expected, found = model(ids), changed(ids)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), DECISIVE_CHANGES.items())
def test_a_decisive_field_is_found_by_name_with_both_values(name, value):
    config = tiny_config("transformer")
    found = find_decisive_differences(tiny_config("transformer", **{name: value}).to_dict(), config)
    assert FieldDifference(name, value, getattr(config, name)) in found


def test_another_model_type_is_the_only_difference():
    found = find_decisive_differences(tiny_config("gla").to_dict(), tiny_config("delta_net"))
    assert found == [FieldDifference("model_type", "gla", "delta_net")]


def test_nested_fields_are_compared_one_by_one():
    attention = {"layers": [1], "num_heads": 2}
    stored = tiny_config("gla", attn={**attention, "rope_theta": 5.0}).to_dict()
    [found] = find_decisive_differences(stored, tiny_config("gla", attn=attention))
    assert found == FieldDifference("attn.rope_theta", 5.0, 10000.0)


def test_a_config_that_was_written_before_a_field_existed_has_its_default():
    config = tiny_config("gla")
    stored = {name: value for name, value in config.to_dict().items() if name != "use_gv"}
    assert find_decisive_differences(stored, config) == []


def test_a_field_that_the_class_does_not_know_is_a_difference_on_either_side():
    config = tiny_config("gla")
    stored = config.to_dict() | {"of_a_later_version": {"scale": 3}}
    missing = FieldDifference("of_a_later_version.scale", 3, None)
    assert find_decisive_differences(stored, config) == [missing]
    later = type(config).from_dict(stored)
    assert find_decisive_differences(stored, later) == []
    [found] = find_decisive_differences(config.to_dict(), later)
    assert found == missing._replace(stored=None, built=3)


def test_what_transformers_once_wrote_into_every_config_is_no_difference():
    former = {"torchscript": False, "pruned_heads": {}, "is_decoder": True, "temperature": 0.5}
    config = tiny_config("gla")
    assert find_decisive_differences(config.to_dict() | former, config) == []


def test_the_trained_length_is_no_difference_unless_rotary_embeddings_are_scaled_by_it():
    def llama(length: int, rope_type: str):
        rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0}
        rope |= {"original_max_position_embeddings": 64} if rope_type == "yarn" else {}
        return LlamaConfig(max_position_embeddings=length, rope_parameters=rope)

    plain = find_decisive_differences(llama(64, "default").to_dict(), llama(128, "default"))
    scaled = find_decisive_differences(llama(64, "yarn").to_dict(), llama(128, "yarn"))
    assert plain == []
    assert [each.name for each in scaled] == ["max_position_embeddings"]


def test_what_initializes_models_of_fla_may_decide_what_others_compute():
    [found] = find_decisive_differences(
        Zamba2Config(time_step_min=0.01).to_dict(), Zamba2Config(time_step_min=0.001)
    )
    assert found == FieldDifference("time_step_min", 0.01, 0.001)
    stored = LlamaConfig(use_cache=False, initializer_range=0.5).to_dict()
    assert find_decisive_differences(stored, LlamaConfig()) == []


def test_models_with_another_norm_have_the_fields_of_fla():
    plain, drawn_otherwise = (
        copy_config_with_norm(tiny_config("mamba2", **changes), "layernorm")
        for changes in ({}, {"time_step_min": 0.005, "fuse_cross_entropy": False})
    )
    assert find_decisive_differences(drawn_otherwise.to_dict(), plain) == []
