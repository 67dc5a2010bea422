"""Norms of blocks are exchanged in place: which ones, under which names, with which options."""

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from flame_accel.models.block_norms import (
    NORM_NAMES,
    find_block_norms,
    norm_type_of,
    replace_block_norms_in_place,
)
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device


def build_llama() -> PreTrainedModel:
    return instantiate_on_default_device(
        LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            vocab_size=64, rms_norm_eps=1e-4,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", NORM_NAMES)
def test_new_norms_have_the_names_epsilon_and_fresh_weights_of_the_old_ones(kind):
    model = build_llama()
    for parent, name in find_block_norms(model):
        torch.nn.init.normal_(getattr(parent, name).weight)
    names = set(model.state_dict())
    replace_block_norms_in_place(model, kind)
    norms = {
        f"{type(parent).__name__}.{name}": getattr(parent, name)
        for parent, name in find_block_norms(model)
    }
    assert {norm_type_of(norm) for norm in norms.values()} == {kind}
    assert {norm.eps for norm in norms.values()} == {1e-4}
    weights = [p for norm in norms.values() for p in norm.parameters()]
    assert all(weight.eq(1).all() for weight in weights)
    gone = {name for name in names if "norm" in name} if kind == "np_layernorm" else set()
    assert names - set(model.state_dict()) == gone


def test_fused_norms_replace_those_of_transformers_if_asked_for():
    model = build_llama()
    replace_block_norms_in_place(model, "rmsnorm", fused=True)
    assert {norm_type_of(getattr(*place)) for place in find_block_norms(model)} == {"fused_rmsnorm"}


def test_norms_inside_of_mixers_stay():
    model = instantiate_on_default_device(tiny_config("delta_net"))
    inner = [layer.attn.o_norm for layer in model.get_decoder().layers]
    replace_block_norms_in_place(model, "layernorm")
    assert all(
        layer.attn.o_norm is norm
        for layer, norm in zip(model.get_decoder().layers, inner, strict=True)
    )
