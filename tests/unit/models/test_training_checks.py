"""A model that cannot compute what is trained is refused before its first step."""

import pytest

from flame_accel.config.errors import UserError
from flame_accel.models.build import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config
from flame_accel.models.training_checks import has_learned_position_table
from flame_accel.models.transformers_catalogue import tiny_transformers_config


def build(config, trained_length: int | None = None):
    return build_model(
        config,
        vocabulary_size=VOCABULARY_SIZE,
        bos_token_id=None,
        eos_token_id=None,
        seed=0,
        trained_length=trained_length,
    )


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "biogpt", "gpt_neo"])
def test_texts_longer_than_a_table_of_positions_are_refused(model_type):
    config = tiny_transformers_config(model_type)
    assert build(config, 256).config.max_position_embeddings == 256
    with pytest.raises(UserError, match=f"{model_type} has 256 learned positions.*257 tokens"):
        build(config, 257)


def test_other_models_have_no_table_of_positions():
    for config in (
        tiny_config("gla"),
        *map(tiny_transformers_config, ("llama", "gemma3n_text", "gptj")),
    ):
        assert not has_learned_position_table(build(config))


def test_a_loss_of_the_router_is_refused():
    config = tiny_transformers_config("mixtral", output_router_logits=True)
    with pytest.raises(UserError, match="output_router_logits mixtral adds"):
        build(config)
