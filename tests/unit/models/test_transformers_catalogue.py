"""Which models of transformers there are here, and how small their tiny ones are."""

import torch
from transformers import LlamaConfig

from flame_accel.models.catalogue import fla_config_classes
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.parameter_groups import count_parameters
from flame_accel.models.transformers_catalogue import (
    tiny_config_of_any_model,
    tiny_transformers_config,
    transformers_only_decoder_config_classes,
)


def test_only_decoders_of_text_are_listed_and_none_that_is_flas():
    found = transformers_only_decoder_config_classes()
    assert found["llama"] is LlamaConfig
    assert {"gpt2", "qwen3_next", "falcon_h1"} <= found.keys()
    # fla's; an encoder; of an encoder and a decoder; of images as well; one whose tokens look ahead
    assert not found.keys() & {*fla_config_classes(), "mamba2", "bert", "t5", "llava", "xlnet"}


def test_a_tiny_model_is_small_and_has_a_layer_of_each_kind():
    config = tiny_transformers_config("qwen3_next", vocab_size=50)
    assert sorted(config.layer_types) == ["full_attention", "linear_attention"]
    assert config.vocab_size == 50
    with torch.device("meta"):
        assert count_parameters(instantiate_on_default_device(config)).total < 1_000_000


def test_a_name_that_both_have_means_the_model_of_fla():
    assert type(tiny_config_of_any_model("mamba2")) is fla_config_classes()["mamba2"]
    assert type(tiny_config_of_any_model("llama")) is LlamaConfig
