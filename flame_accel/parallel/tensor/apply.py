"""Applies tensor parallelism to a built model, in place."""

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from flame_accel.parallel.checks import check_initial_weights_equal
from flame_accel.parallel.ranks import tp_mesh, tp_size
from flame_accel.parallel.tensor import overrides
from flame_accel.parallel.tensor.differentiable_collectives import (
    copy_to_tp_region,
    identity_with_averaged_gradient,
    reduce_from_tp_region,
)
from flame_accel.parallel.tensor.dtensor_parameters import (
    LocalTransform,
    make_attribute_read_local_tensor,
    shard_parameter,
)
from flame_accel.parallel.tensor.instance_patching import replace_forward_globals
from flame_accel.parallel.tensor.plans import SHARDED_OUTSIDE_REGIONS
from flame_accel.parallel.tensor.regions import Region, match_regions_with_plans, planned_shard_dim
from flame_accel.parallel.tensor.vocabulary import (
    replace_forward_of_sharded_embedding,
    replace_head_forward_and_loss,
)


def apply_tensor_parallel(
    accelerator: Accelerator, model: PreTrainedModel, *, loss_parallel: bool
) -> None:
    """Shards the matrices of a model over the ranks of this rank's TP group, in place.

    Every parameter becomes a DTensor on the TP mesh, under its name, with the attributes of the old
    parameter, and on the accelerator's device. Degree and model must have passed
    `check_tensor_parallel_support`.

    Args:
        accelerator: At a TP degree of 1 nothing changes.
        model: As built, with the same weights on all ranks.
        loss_parallel: Each rank computes only the logits of its part of the vocabulary.

    Raises:
        UserError: There is no plan for the model.
        RuntimeError: Ranks have built different weights.
    """
    if tp_size(accelerator) == 1:
        return
    regions = match_regions_with_plans(model)
    # each rank keeps a shard of its own copy
    check_initial_weights_equal(accelerator, model)
    shard_model_over_mesh(
        tp_mesh(accelerator),
        model,
        regions,
        device=accelerator.device,
        loss_parallel=loss_parallel,
    )


def shard_model_over_mesh(
    mesh: DeviceMesh,
    model: PreTrainedModel,
    regions: list[Region],
    *,
    device: torch.device,
    loss_parallel: bool,
) -> None:
    """Shards a model over a one-dimensional TP mesh, in place; see `apply_tensor_parallel`."""
    _replace_parameters_by_dtensors(mesh, model, regions, device)
    for region in regions:
        _parallelize_region(region, mesh.get_group())
    inputs: Any = model.get_input_embeddings()
    replace_forward_of_sharded_embedding(inputs, mesh)
    replace_head_forward_and_loss(model, mesh, loss_parallel=loss_parallel)


def _replace_parameters_by_dtensors(
    mesh: DeviceMesh, model: PreTrainedModel, regions: list[Region], device: torch.device
) -> None:
    """Replaces every parameter by a DTensor; outside of the ends, modules read its local part."""
    outside = partial(identity_with_averaged_gradient, group=mesh.get_group())
    inside = partial(copy_to_tp_region, group=mesh.get_group())
    transforms: dict[nn.Module, LocalTransform] = {}
    for region in regions:
        transforms |= dict.fromkeys(region.module.modules(), inside)
    # they read their weights in their own way (`vocabulary`)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    dims = _find_shard_dims(model, regions)
    sharded: dict[nn.Parameter, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            dim = dims.get(parameter)
            if parameter not in sharded:
                # a tied one is seen twice
                sharded[parameter] = shard_parameter(parameter, mesh, dim, device)
            module._parameters[name] = sharded[parameter]
            if module not in ends:
                replicated = transforms.get(module, outside)
                make_attribute_read_local_tensor(
                    module, name, replicated if dim is None else _identity
                )


def _find_shard_dims(
    model: PreTrainedModel, regions: list[Region]
) -> dict[nn.Parameter, int | None]:
    """The dimension along which each parameter is sharded; None and missing ones are replicated."""
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    dims: dict[nn.Parameter, int | None] = {end.weight: 0 for end in ends}
    for name, parameter in model.named_parameters():
        if name in SHARDED_OUTSIDE_REGIONS:
            dims[parameter] = SHARDED_OUTSIDE_REGIONS[name]
    for region in regions:
        for name, parameter in region.module.named_parameters():
            dims[parameter] = planned_shard_dim(region.plan, name)
    return dims


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _parallelize_region(region: Region, group: ProcessGroup) -> None:
    """Adapts a region in place: its sizes become local ones, its ends talk to the TP group."""
    module, plan = region.module, region.plan
    for name in (*plan.divisible_sizes, *plan.derived_sizes):
        setattr(module, name, getattr(module, name) // group.size())
    if plan.overrides:
        replace_forward_globals(
            module,
            {name: getattr(overrides, ours)(group) for name, ours in plan.overrides.items()},
        )

    def copy_inputs(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (copy_to_tp_region(args[0], group), *args[1:]), kwargs
        hidden = copy_to_tp_region(kwargs["hidden_states"], group)
        return args, kwargs | {"hidden_states": hidden}

    def reduce_outputs(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return reduce_from_tp_region(output[0], group), *output[1:]
        return reduce_from_tp_region(output, group)

    module.register_forward_pre_hook(copy_inputs, with_kwargs=True)
    module.register_forward_hook(reduce_outputs)
