"""The regions of a model, matched with their plans, and what tensor parallelism supports.

`plans` has the plans; sharding by them is done in `apply`.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flame_accel.config import UsageError
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.norms import base_model_type
from flame_accel.parallel.tensor.plans import PLANS, SUPPORTED_MODEL_TYPES, ShardingPlan

OPTION = "training.tensor_parallel_degree"


class Region(NamedTuple):
    """A mixer or MLP of a model, with the plan by which it is sharded."""

    name: str
    """Its name in the model, such as model.layers.0.attn."""
    module: nn.Module
    plan: ShardingPlan


def check_tensor_parallel_support(
    config: PreTrainedConfig, degree: int, *, loss_parallel: bool, trust_remote_code: bool = False
) -> None:
    """Checks that a model supports a TP degree, without allocating memory for its weights.

    Args:
        config: Config of the model to train.
        degree: Number of TP ranks; at 1 nothing is checked.
        loss_parallel: Whether the loss is computed from sharded logits.
        trust_remote_code: Whether the code that the config's `auto_map` names may run.

    Raises:
        UserError: There is no plan for the model, its sizes are not divisible, or its loss needs
            the logits of the whole vocabulary.
    """
    if degree == 1:
        return
    with torch.device("meta"):
        model = instantiate_on_default_device(config, trust_remote_code=trust_remote_code)
    check_tp_degree_divides_sizes(match_regions_with_plans(model), degree)
    if loss_parallel:
        check_no_l2warp(config)


def match_regions_with_plans(model: PreTrainedModel) -> list[Region]:
    """The mixers and MLPs of a model, from its first layer to its last.

    Raises:
        UserError: There is no plan for the model, or for one of its layers.
    """
    # with another norm (model.norm_type) it is a type of its own
    model_type = base_model_type(model.config)
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UsageError(
            f"tensor parallelism does not support {model_type}",
            where=OPTION,
            remedy=f"it supports {', '.join(SUPPORTED_MODEL_TYPES)}; "
            "training.data_parallel_shard_degree shards the weights of any model",
        )
    decoder: Any = model.get_decoder()
    regions = []
    for index, block in enumerate(decoder.layers):
        for part in ("attn", "mlp"):
            module, name = getattr(block, part), f"{model.base_model_prefix}.layers.{index}.{part}"
            plan = PLANS.get(type(module).__name__)
            names = [name for name, _ in module.named_parameters()]
            if plan is None or not all(
                plan_shards_or_replicates_unless_rowwise_bias(plan, name) for name in names
            ):
                raise UsageError(
                    f"tensor parallelism does not support {type(module).__name__} as it is "
                    "configured here",
                    where=f"{name}, {OPTION}",
                    remedy=f"use layers of fla's {', '.join(SUPPORTED_MODEL_TYPES)}",
                )
            regions.append(Region(name, module, plan))
    return regions


def plan_shards_or_replicates_unless_rowwise_bias(plan: ShardingPlan, parameter_name: str) -> bool:
    """Whether a plan says how a parameter is held; it does not for biases of rowwise layers."""
    if any(_is_parameter_within(parameter_name, owner_name) for owner_name in plan.rowwise):
        # each rank would add the bias once
        return parameter_name.endswith("weight")
    return any(
        _is_parameter_within(parameter_name, owner_name)
        for owner_name in (*plan.colwise, *plan.replicated)
    )


def planned_shard_dim(plan: ShardingPlan, parameter_name: str) -> int | None:
    """The dimension along which a parameter of a region is sharded; None if it is replicated."""
    if any(_is_parameter_within(parameter_name, owner_name) for owner_name in plan.colwise):
        return 0
    rowwise = any(_is_parameter_within(parameter_name, owner_name) for owner_name in plan.rowwise)
    return 1 if rowwise else None


def _is_parameter_within(parameter_name: str, owner_name: str) -> bool:
    """Whether a parameter is `owner_name` itself or lies in the module of that name."""
    return parameter_name == owner_name or parameter_name.startswith(f"{owner_name}.")


def valid_tp_degrees(regions: list[Region]) -> list[int]:
    """The TP degrees that divide all heads and features of the regions, ascending, 1 included."""
    sizes = (
        getattr(region.module, name) for region in regions for name in region.plan.divisible_sizes
    )
    common = math.gcd(*sizes)
    return [degree for degree in range(1, common + 1) if common % degree == 0]


def check_tp_degree_divides_sizes(regions: list[Region], degree: int) -> None:
    """Checks that a TP degree divides all heads and features of the regions.

    Raises:
        UserError: It does not; names the size and the degrees that work.
    """
    for region in regions:
        for name in region.plan.divisible_sizes:
            size = getattr(region.module, name)
            if size % degree:
                degrees = ", ".join(map(str, valid_tp_degrees(regions)))
                raise UsageError(
                    f"{name} = {size} of {region.name} is not divisible by the tensor-parallel "
                    f"degree {degree}",
                    where=OPTION,
                    remedy=f"for this model these degrees work: {degrees}",
                )


def check_no_l2warp(config: PreTrainedConfig) -> None:
    """Checks that a model's loss is a sum over the vocabulary, as loss parallelism needs.

    Raises:
        UserError: The config adds fla's penalty of the largest logit.
    """
    # not every config has the field
    if getattr(config, "use_l2warp", False):
        raise UsageError(
            "use_l2warp of the model config needs the logits of the whole vocabulary on each rank",
            where=OPTION,
            remedy="add --training.disable_loss_parallel",
        )
