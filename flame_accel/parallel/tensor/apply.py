"""Splits a built model over the peers of tensor parallelism, in place."""

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from flame_accel.parallel.collectives import all_gather
from flame_accel.parallel.tensor import overrides
from flame_accel.parallel.tensor.degrees import (
    Region,
    check_loss_without_logits,
    check_tensor_parallel_degree,
    find_regions,
    split_dimension,
)
from flame_accel.parallel.tensor.dtensors import View, distribute, replace_globals, show_locally
from flame_accel.parallel.tensor.plans import FEATURES_OUTSIDE
from flame_accel.parallel.tensor.regions import average_gradient, enter, leave
from flame_accel.parallel.tensor.vocabulary import split_embedding, split_head


def apply_tensor_parallel(
    accelerator: Accelerator, model: PreTrainedModel, *, loss_parallel: bool
) -> None:
    """Splits the matrices of a model over the peers of tensor parallelism, in place.

    Every parameter becomes a DTensor on the peers' mesh, under its name and with its marks, on the
    accelerator's device.

    Args:
        accelerator: Its mesh has a dimension "tp".
        model: As built: with the same weights on all ranks.
        loss_parallel: Each peer computes the logits of its part of the vocabulary only.

    Raises:
        UserError: There is no plan for the model, or the degree does not divide its heads.
        RuntimeError: Ranks have built different weights.
    """
    meshes: Any = accelerator.torch_device_mesh
    mesh = meshes["tp"]
    regions = find_regions(model)
    check_tensor_parallel_degree(regions, mesh.size())
    if loss_parallel:
        check_loss_without_logits(model)
    _check_same_weights(accelerator, model)
    split_over(mesh, model, regions, device=accelerator.device, loss_parallel=loss_parallel)


def _check_same_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Compares the sum of all weights over all ranks: each keeps its share of its own copy."""
    total = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
    sums = all_gather(accelerator, total.reshape(1).to(accelerator.device))
    if not torch.equal(sums, sums[:1].expand_as(sums)):
        raise RuntimeError(f"initial weights differ between ranks: {sums.tolist()}")


def split_over(
    mesh: DeviceMesh,
    model: PreTrainedModel,
    regions: list[Region],
    *,
    device: torch.device,
    loss_parallel: bool,
) -> None:
    """Splits a model over the peers of a one-dimensional mesh; see `apply_tensor_parallel`."""
    _distribute_parameters(mesh, model, regions, device)
    for region in regions:
        _split_region(region, mesh.get_group())
    inputs: Any = model.get_input_embeddings()
    split_embedding(inputs, mesh)
    split_head(model, mesh, loss_parallel=loss_parallel)


def _distribute_parameters(
    mesh: DeviceMesh, model: PreTrainedModel, regions: list[Region], device: torch.device
) -> None:
    """Replaces every parameter by this peer's share of it, and shows it so to its module."""
    outside = partial(average_gradient, group=mesh.get_group())
    inside = partial(enter, group=mesh.get_group())
    views: dict[nn.Module, View] = {}
    for region in regions:
        views |= dict.fromkeys(region.module.modules(), inside)
    # they show their weights themselves
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    dimensions = _dimensions(model, regions)
    shares: dict[nn.Parameter, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            dim = dimensions.get(parameter)
            if parameter not in shares:
                # a tied one is seen twice
                shares[parameter] = distribute(parameter, mesh, dim, device)
            module._parameters[name] = shares[parameter]
            if module not in ends:
                whole = views.get(module, outside)
                show_locally(module, name, whole if dim is None else _as_is)


def _dimensions(model: PreTrainedModel, regions: list[Region]) -> dict[nn.Parameter, int | None]:
    """The dimensions along which parameters are split; those that are missing stay whole."""
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    dimensions: dict[nn.Parameter, int | None] = {end.weight: 0 for end in ends}
    for name, parameter in model.named_parameters():
        if name in FEATURES_OUTSIDE:
            dimensions[parameter] = FEATURES_OUTSIDE[name]
    for region in regions:
        for name, parameter in region.module.named_parameters():
            dimensions[parameter] = split_dimension(region.plan, name)
    return dimensions


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _split_region(region: Region, group: ProcessGroup) -> None:
    """Tells a region how much of it is here, and connects its ends with the peers' regions."""
    module, plan = region.module, region.plan
    for name in (*plan.counts, *plan.widths):
        setattr(module, name, getattr(module, name) // group.size())
    if plan.overrides:
        replace_globals(
            module,
            {name: getattr(overrides, ours)(group) for name, ours in plan.overrides.items()},
        )

    def enter_region(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (enter(args[0], group), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": enter(kwargs["hidden_states"], group)}

    def leave_region(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return leave(output[0], group), *output[1:]
        return leave(output, group)

    module.register_forward_pre_hook(enter_region, with_kwargs=True)
    module.register_forward_hook(leave_region)
