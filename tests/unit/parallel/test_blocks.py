"""The blocks of a model, and how their forward is replaced."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from flame_accel.config import UserError
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel.blocks import find_blocks, replace_training_forward_and_drop_caches


def llama() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    return AutoModelForCausalLM.from_config(config)


def test_blocks_are_the_layers_in_order():
    for model in (llama(), instantiate_on_default_device(tiny_config("gla", num_hidden_layers=3))):
        assert find_blocks(model, needed_by_option="") == list(model.get_decoder().layers)


def test_a_subclass_of_a_block_is_a_block():
    """As FSDP2 makes one of every block."""
    model = instantiate_on_default_device(tiny_config("gla"))
    block: Any = model.get_decoder().layers[0]
    block.__class__ = type("Sharded", (type(block),), {})
    assert find_blocks(model, needed_by_option="")[0] is block


def test_a_model_without_blocks_is_refused_with_the_option_that_needs_them():
    model = llama()
    model._no_split_modules = None
    model.model.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(
        UserError, match="does not declare which of its modules are blocks"
    ) as raised:
        find_blocks(model, needed_by_option="training.compile")
    assert raised.value.where == "training.compile"
    assert raised.value.exit_code == 2


class Block(nn.Module):
    """Returns its input, and what else it was called with."""

    def forward(self, hidden: Tensor, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        return "own", kwargs


def called_in_training(hidden: Tensor, **kwargs: Any) -> tuple[str, dict[str, Any]]:
    return "training", kwargs


def test_only_training_runs_the_replaced_forward_and_without_caches():
    block, hidden, cache = Block(), torch.ones(1), DynamicCache()
    replace_training_forward_and_drop_caches(block, called_in_training)
    options = {"past_key_values": cache, "use_cache": True}
    assert block(hidden, **options) == ("training", {"past_key_values": None, "use_cache": False})
    with torch.no_grad():
        assert block(hidden, **options) == ("own", options)
    assert block.eval()(hidden, **options) == ("own", options)


def test_names_of_parameters_do_not_change():
    model = instantiate_on_default_device(tiny_config("gla"))
    names = list(model.state_dict())
    for block in find_blocks(model, needed_by_option=""):
        replace_training_forward_and_drop_caches(block, block.forward)
    assert list(model.state_dict()) == names
