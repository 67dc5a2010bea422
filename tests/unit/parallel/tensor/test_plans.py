"""The plans: what fla's layers are made of is covered, and names mean what torch means by them."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel.tensor.plans import PLANS, SUPPORTED_MODEL_TYPES
from flame_accel.parallel.tensor.regions import match_regions_with_plans, planned_shard_dim
from tests.helpers.process_groups import fake_mesh


@pytest.mark.parametrize("style", ["colwise", "rowwise"])
def test_colwise_and_rowwise_shard_as_those_of_torch(style):
    plan = PLANS["GatedMLP"]
    (name, *_) = getattr(plan, style)
    module = nn.ModuleDict({name: nn.Linear(4, 8, bias=False)})
    styles = {"colwise": ColwiseParallel(), "rowwise": RowwiseParallel()}
    with fake_mesh(2) as mesh:
        parallelize_module(module, mesh, {name: styles[style]})
        weight = module[name].weight
        assert isinstance(weight, DTensor)
        assert weight.placements[0].is_shard(planned_shard_dim(plan, f"{name}.weight"))


@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_sizes_and_parameters_of_a_plan_exist_in_fla(model_type):
    with torch.device("meta"):
        model = instantiate_on_default_device(tiny_config(model_type))
    regions = match_regions_with_plans(model)
    assert regions
    for region in regions:
        for name in (*region.plan.divisible_sizes, *region.plan.derived_sizes):
            assert isinstance(getattr(region.module, name), int), name
        sharded = {
            planned_shard_dim(region.plan, name) for name, _ in region.module.named_parameters()
        }
        assert {0, 1} <= sharded


def test_no_parameter_is_held_in_two_ways():
    for plan in PLANS.values():
        names = (*plan.colwise, *plan.rowwise, *plan.replicated)
        assert len(set(names)) == len(names)
