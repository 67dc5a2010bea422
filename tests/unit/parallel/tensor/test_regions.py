"""Finding the regions of a model, and models and degrees that are not supported."""

import importlib

import pytest
import torch

from flame_accel import kernels
from flame_accel.config import UserError
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel.tensor.plans import PLANS, SUPPORTED_MODEL_TYPES
from flame_accel.parallel.tensor.regions import (
    check_no_l2warp,
    check_tensor_parallel_support,
    check_tp_degree_divides_sizes,
    match_regions_with_plans,
    plan_shards_or_replicates_unless_rowwise_bias,
    planned_shard_dim,
    valid_tp_degrees,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}


@pytest.fixture(scope="module")
def build():
    """`build(model_type, **changes)`: a tiny model."""
    kernels.install("torch")
    importlib.import_module("fla")
    from transformers import AutoConfig

    return lambda model_type, **changes: instantiate_on_default_device(
        AutoConfig.for_model(model_type, **SMALL | changes)
    )


def test_a_model_without_a_plan_is_refused_and_those_with_one_are_named(build):
    with pytest.raises(UserError, match="does not support gsa") as refused:
        match_regions_with_plans(build("gsa", num_heads=2))
    assert all(model_type in str(refused.value) for model_type in SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize(
    ("model_type", "sizes", "degree", "blamed", "working"),
    [
        ("gla", {"num_heads": 4, "intermediate_size": 64}, 8, "num_heads = 4", [1, 2, 4]),
        ("gla", {"num_heads": 4, "intermediate_size": 50}, 4, "intermediate_size = 50", [1, 2]),
        (
            "transformer",
            {"num_heads": 8, "num_kv_heads": 2, "intermediate_size": 64},
            4,
            "num_kv_heads = 2",
            [1, 2],
        ),
        (
            "gla",
            {
                "num_heads": 4,
                "intermediate_size": 64,
                "attn": {"layers": [0], "num_heads": 4, "num_kv_heads": 1},
            },
            2,
            "num_kv_heads = 1 of model.layers.0.attn",
            [1],
        ),
        (
            "gated_deltanet",
            {"num_heads": 3, "head_dim": 8, "num_v_heads": 6, "intermediate_size": 48},
            2,
            "num_heads = 3",
            [1, 3],
        ),
    ],
)
def test_an_indivisible_size_is_named_with_the_degrees_that_work(
    build, model_type, sizes, degree, blamed, working
):
    regions = match_regions_with_plans(build(model_type, **sizes))
    assert valid_tp_degrees(regions) == working
    with pytest.raises(UserError, match=blamed) as refused:
        check_tp_degree_divides_sizes(regions, degree)
    assert f"these degrees work: {', '.join(map(str, working))}" in str(refused.value)
    for other in working:
        check_tp_degree_divides_sizes(regions, other)


def test_a_layer_with_a_parameter_outside_of_its_plan_is_refused(build):
    """Each TP rank would add the bias of the output once."""
    model = build("gla", num_heads=2)
    model.model.layers[0].attn.o_proj.bias = torch.nn.Parameter(torch.zeros(32))
    with pytest.raises(UserError, match="GatedLinearAttention") as refused:
        match_regions_with_plans(model)
    assert "model.layers.0.attn" in str(refused.value)


def test_a_penalty_of_logits_is_refused_with_loss_parallel(build):
    with pytest.raises(UserError, match="disable_loss_parallel"):
        check_no_l2warp(build("gla", num_heads=2, use_l2warp=True).config)
    check_no_l2warp(build("gla", num_heads=2).config)


def test_regions_are_the_mixers_and_mlps_in_order(build):
    regions = match_regions_with_plans(build("gla", num_heads=2, num_hidden_layers=2))
    names = [f"model.layers.{index}.{part}" for index in (0, 1) for part in ("attn", "mlp")]
    assert [region.name for region in regions] == names


def test_parameters_are_matched_by_the_name_of_their_module():
    plan = PLANS["GatedLinearAttention"]
    assert planned_shard_dim(plan, "q_proj.weight") == 0
    assert planned_shard_dim(plan, "o_proj.weight") == 1
    assert planned_shard_dim(plan, "g_norm.weight") is None
    # a module whose name only begins alike
    assert not plan_shards_or_replicates_unless_rowwise_bias(plan, "q_projection.weight")
    # the bias of a rowwise layer
    assert plan_shards_or_replicates_unless_rowwise_bias(
        plan, "o_proj.weight"
    ) and not plan_shards_or_replicates_unless_rowwise_bias(plan, "o_proj.bias")


@pytest.mark.parametrize(("degree", "fields"), [(1, {"use_l2warp": True}), (2, {})])
def test_supported_configs_pass_without_a_model(build, degree, fields):
    config = build("gla", num_heads=2, **fields).config
    check_tensor_parallel_support(config, degree, loss_parallel=True)


@pytest.mark.parametrize(
    ("degree", "fields", "message"),
    [(3, {}, "num_heads = 2"), (2, {"use_l2warp": True}, "use_l2warp")],
)
def test_unsupported_configs_are_refused_without_a_model(build, degree, fields, message):
    config = build("gla", num_heads=2, **fields).config
    with pytest.raises(UserError, match=message):
        check_tensor_parallel_support(config, degree, loss_parallel=True)
