"""Laws of the optimizer's groups and of what stays in float32."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from flame_accel.models.build import build_model
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.parameter_groups import (
    count_parameters,
    fp32_parameter_names,
    parameter_groups,
)
from flame_accel.models.registration import register_models
from flame_accel.models.transformers_catalogue import tiny_transformers_config

SIZES = {"hidden_size": 64, "num_hidden_layers": 2}
FAMILIES = {
    "gla": {"num_heads": 2, "use_short_conv": True},
    "gated_deltanet": {"num_heads": 2, "head_dim": 16},
    "mamba2": {"head_dim": 16, "state_size": 16},
    "rwkv7": {"head_dim": 32},
    "hgrn2": {"expand_ratio": 16},
    "kda": {"num_heads": 2, "head_dim": 16},
}


@pytest.fixture(params=FAMILIES)
def model(request) -> PreTrainedModel:
    return build(request.param)


def build(model_type: str, **fields) -> PreTrainedModel:
    register_models()
    config = AutoConfig.for_model(model_type, **SIZES, **FAMILIES[model_type], **fields)
    return build_model(config, vocabulary_size=40, bos_token_id=1, eos_token_id=2, seed=0)


def decayed_names(model: nn.Module) -> set[str]:
    ids = {id(parameter) for parameter in parameter_groups(model, 0.1)[0]["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_every_trainable_parameter_is_in_exactly_one_group_in_the_models_order(model):
    next(model.parameters()).requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    position = {id(p): i for i, p in enumerate(model.parameters()) if p.requires_grad}
    taken = [[position[id(p)] for p in group["params"]] for group in groups]
    assert sorted(taken[0] + taken[1]) == sorted(position.values())
    assert all(indices == sorted(indices) for indices in taken)


def test_norms_biases_vectors_and_marked_parameters_do_not_decay(model):
    decayed = decayed_names(model)
    for name, parameter in model.named_parameters():
        exempt = (
            name.endswith("bias")
            or "norm" in name
            or sum(size > 1 for size in parameter.shape) < 2
            or hasattr(parameter, "_no_weight_decay")
        )
        assert (name in decayed) is not exempt, name


@pytest.mark.parametrize(
    ("model_type", "decay", "exempt"),
    [
        ("mamba2", "mixer.in_proj.weight", ("mixer.A_log", "mixer.D", "mixer.dt_bias")),
        ("gated_deltanet", "attn.q_conv1d.weight", ("attn.A_log", "attn.o_norm.weight")),
        ("rwkv7", "attn.r_proj.weight", ("attn.x_r", "attn.k_k", "attn.w_lora.lora.2.bias")),
    ],
)
def test_known_parameters_are_where_they_belong(model_type, decay, exempt):
    model = build(model_type)
    layers = "backbone.layers.1." if model_type == "mamba2" else "model.layers.1."
    decayed = decayed_names(model)
    assert layers + decay in decayed
    assert "lm_head.weight" in decayed
    for name in exempt:
        assert layers + name in dict(model.named_parameters())
        assert layers + name not in decayed


def test_a_projection_to_one_feature_decays():
    module = nn.Linear(8, 1)
    groups = parameter_groups(module, 0.1)
    assert [group["params"] for group in groups] == [[module.weight], [module.bias]]


def test_there_is_no_empty_group():
    assert len(parameter_groups(nn.LayerNorm(8), 0.1)) == 1


def test_a_tied_parameter_is_counted_and_grouped_once():
    tied, free = (build("gla", tie_word_embeddings=tie) for tie in (True, False))
    assert tied.lm_head.weight is tied.model.embeddings.weight
    head = 40 * 64
    assert count_parameters(free).total - count_parameters(tied).total == head
    assert count_parameters(free).without_embeddings == count_parameters(tied).total
    assert count_parameters(tied).without_embeddings == count_parameters(tied).total - head
    grouped = [p for group in parameter_groups(tied, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(tied.parameters()))


def test_an_optimizer_takes_the_groups(model):
    torch.optim.AdamW(parameter_groups(model, 0.1), fused=True)


@pytest.mark.parametrize(
    ("model_type", "kept"),
    [
        ("gla", set()),
        ("rwkv7", set()),
        ("hgrn2", set()),
        ("kda", {"attn.A_log", "attn.dt_bias"}),
        ("gated_deltanet", {"attn.A_log", "attn.dt_bias"}),
        ("mamba2", {"mixer.A_log", "mixer.dt_bias"}),
    ],
)
def test_what_fla_computes_with_in_float32_is_found(model_type, kept):
    model = build(model_type)
    before = torch.get_rng_state()
    names = fp32_parameter_names(model)
    layers = "backbone.layers." if model_type == "mamba2" else "model.layers."
    assert {name.split(".", 3)[3] for name in names if name.startswith(layers)} == kept
    assert [name for name, _ in model.named_parameters() if name in names] == names
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config.dtype is torch.float32


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("qwen3_next", {"A_log", "dt_bias"}), ("bamba", {"A_log", "dt_bias"}), ("llama", set())],
)
def test_decays_of_transformers_own_models_stay_in_fp32(model_type, expected):
    model = instantiate_on_default_device(tiny_transformers_config(model_type))
    assert {name.rpartition(".")[2] for name in fp32_parameter_names(model)} == expected
