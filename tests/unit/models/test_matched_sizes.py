"""Architectures that are compared have the same width, depth and state."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedConfig

from flame_accel.config.errors import UsageError
from flame_accel.models.catalogue import fla_config_classes
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.matched_sizes import (
    ATTENTION_TYPES,
    StateShape,
    matched_config,
    state_shape,
    write_matched_config,
)


def build(model_type: str, **fields: Any) -> PreTrainedConfig:
    return fla_config_classes()[model_type](**fields)


LIKE = build(
    "gla",
    hidden_size=64,
    num_hidden_layers=3,
    num_heads=2,
    expand_k=0.5,
    expand_v=1.0,
    hidden_ratio=2,
    use_short_conv=True,
    conv_size=3,
    tie_word_embeddings=True,
    vocab_size=50,
)
WITH_A_STATE = (
    *("comba", "delta_net", "gated_deltanet", "gated_deltaproduct", "kda", "linear_attn"),
    *("mamba2", "precond_gated_deltanet", "precond_kda", "retnet", "rwkv6"),
)


def test_the_state_of_a_layer_is_what_the_fields_say() -> None:
    assert state_shape(LIKE) == StateShape(heads=2, key_dim=16, value_dim=32)
    assert state_shape(build("gated_deltanet", head_dim=8, num_heads=3, expand_v=2)) == (3, 8, 16)
    values = build("kda", head_dim=8, num_heads=3, num_v_heads=6, expand_v=1)
    assert state_shape(values) == (6, 8, 8)
    mamba = build("mamba2", hidden_size=64, expand=2, head_dim=16, state_size=128)
    assert state_shape(mamba) == (8, 128, 16)
    assert state_shape(build("hgrn2", hidden_size=64, expand_ratio=16)) == (4, 16, 16)
    assert state_shape(build("rwkv7", hidden_size=64, head_dim=16)) == (4, 16, 16)
    assert state_shape(build("transformer")) is None
    assert state_shape(build("gsa")) is None


@pytest.mark.parametrize("model_type", [*WITH_A_STATE, *sorted(ATTENTION_TYPES)])
def test_width_depth_and_state_are_those_of_the_given_config(model_type: str) -> None:
    config = matched_config(model_type, LIKE)
    assert config.model_type == model_type
    assert (config.hidden_size, config.num_hidden_layers) == (64, 3)
    fields = config.to_dict()
    assert fields.get("hidden_ratio", 2) == 2
    assert fields.get("conv_size", 3) == 3
    assert fields.get("tie_word_embeddings") is True
    if model_type in ATTENTION_TYPES:
        assert (config.num_heads, state_shape(config)) == (2, None)
    else:
        assert state_shape(config) == state_shape(LIKE)


def test_the_given_architecture_keeps_every_field() -> None:
    assert matched_config("gla", LIKE) is LIKE


def test_heads_of_softmax_attention_become_a_state_of_their_width() -> None:
    attention = build("transformer", hidden_size=64, num_heads=4)
    assert state_shape(matched_config("delta_net", attention)) == (4, 16, 16)


@pytest.mark.parametrize("model_type", ["delta_net", "gated_deltanet", "retnet"])
def test_a_written_config_loads_and_has_as_many_parameters(model_type: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_matched_config(model_type, LIKE, file)
    fields = json.loads(file.read_text(encoding="utf-8"))
    config = fla_config_classes()[model_type].from_dict(fields)
    assert state_shape(config) == state_shape(LIKE)
    sizes = [
        sum(parameter.numel() for parameter in instantiate_on_default_device(one).parameters())
        for one in (config, LIKE)
    ]
    # gates and their projections differ
    assert sizes[0] == pytest.approx(sizes[1], rel=0.35)


def test_what_cannot_have_that_state_is_refused() -> None:
    for model_type in ("gsa", "mamba"):
        with pytest.raises(UsageError, match=f"{model_type} cannot have a state of the same size"):
            matched_config(model_type, LIKE)
    with pytest.raises(UsageError, match="'delta' is neither a preset, a file nor an architecture"):
        matched_config("delta", LIKE)
    with pytest.raises(UsageError, match=r"did you mean delta_net\? Name some of abc, "):
        matched_config("delta_nett", LIKE)
    # of as many numbers in another shape
    assert state_shape(matched_config("hgrn2", LIKE)) == (4, 16, 16)
    slots = build("gsa", hidden_size=64)
    with pytest.raises(UsageError, match="as the gsa of the recipe"):
        matched_config("gla", slots)


def test_attention_normalizes_queries_and_keys_if_the_given_model_does() -> None:
    assert matched_config("transformer", build("delta_net")).to_dict()["qk_norm"] is True
    assert matched_config("transformer", LIKE).to_dict()["qk_norm"] is False
    assert matched_config("delta_net", LIKE).to_dict()["qk_norm"] == "l2"
