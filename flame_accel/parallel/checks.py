"""Checks of what a launch and `prepare` gave, compared with what was asked for.

Every check raises before the first step: a run that is distributed in another way than asked for
trains well enough to be noticed late. Options that an engine does not support are
refused in `option_checks`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed import ProcessGroup, get_world_size
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from flame_accel.config import UserError
from flame_accel.parallel.collectives import all_gather_stacked
from flame_accel.parallel.deepspeed import is_deepspeed, iterate_model_parameters_under_zero
from flame_accel.parallel.describe import mesh_degrees
from flame_accel.parallel.fp32_parameters import ignored_fp32_parameters
from flame_accel.parallel.ranks import dp_size, tp_size
from flame_accel.parallel.sharded_tensors import detached_shard_or_tensor_itself
from flame_accel.parallel.topology import Topology

DISTRIBUTED_TYPES = {
    "single": {DistributedType.NO},
    "ddp": {DistributedType.MULTI_GPU, DistributedType.MULTI_XPU, DistributedType.MULTI_CPU},
    "fsdp2": {DistributedType.FSDP},
    "tensor": {DistributedType.MULTI_GPU, DistributedType.MULTI_XPU},
    "deepspeed": {DistributedType.DEEPSPEED},
}
"""Names of an engine of `topology` in accelerate, on devices and over gloo."""


def check_accelerator_matches_topology(accelerator: Accelerator, topology: Topology) -> None:
    """Checks that an Accelerator has the processes, engine and mesh that it was built for.

    Raises:
        UserError: It has others.
    """
    if accelerator.num_processes != topology.world_size:
        raise UserError(
            f"{topology.world_size} processes were launched but this one sees "
            f"{accelerator.num_processes}",
            where="the accelerate configuration",
            remedy="launch with a file of accelerate_configs/, which say what each needs",
        )
    found, asked = mesh_degrees(accelerator), topology.degrees
    as_asked = {
        "engine": accelerator.distributed_type in DISTRIBUTED_TYPES[topology.engine],
        "FSDP version 2": accelerator.is_fsdp2 == (topology.engine == "fsdp2"),
        "mesh": found == asked,
    }
    wrong = [what for what, matches in as_asked.items() if not matches]
    if wrong:
        raise UserError(
            f"the launch gave {accelerator.distributed_type.value} over {found}, asked for was "
            f"{topology.engine} over {asked} ({', '.join(wrong)})",
            where="distributed_type of the accelerate configuration",
            remedy="launch with a file of accelerate_configs/, which say what each needs",
        )


def check_initial_weights_equal(accelerator: Accelerator, model: nn.Module) -> None:
    """Checks that ranks that should have built the same weights have, bit by bit.

    All ranks must call it. Sharding takes every shard from another rank and ignores the rest.

    Args:
        accelerator: The run's Accelerator.
        model: On the CPU or a device, before `prepare`; sharded over TP ranks or not at all.

    Raises:
        RuntimeError: They have built different weights, or weights on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        # accelerate tells parameters apart by their addresses, which would all be 0
        raise RuntimeError("the model has no weights yet: it is on the meta device")
    if accelerator.num_processes == 1:
        return
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    checksums = {
        name: _sum_of_bit_patterns(detached_shard_or_tensor_itself(parameter)).to(
            accelerator.device
        )
        for name, parameter in model.named_parameters()
    }
    # TP ranks are neighbors; once sharded, they hold different parts
    different = _names_that_differ_between_copies(
        checksums, None, ranks_per_copy=tp_size(accelerator) if sharded else 1
    )
    if different:
        raise RuntimeError(
            f"ranks have built different initial weights of {len(different)} parameters, such as "
            f"{different[0]}"
        )


def check_prepared_parameters(
    accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer
) -> None:
    """Checks that a prepared optimizer holds the model's parameters, and how these are sharded.

    All ranks must call it.

    Raises:
        RuntimeError: A parameter has no optimizer, is not sharded as asked for, or differs between
            its copies.
    """
    if is_deepspeed(accelerator):
        optimized = {id(p) for p in iterate_model_parameters_under_zero(optimizer)}
    else:
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if optimized != trainable:
        raise RuntimeError(
            f"after prepare the optimizer holds {len(optimized)} parameters, the model "
            f"{len(trainable)}, {len(optimized & trainable)} of them the same"
        )
    if accelerator.is_fsdp2:
        _check_fsdp2_sharding_and_device(accelerator, model)
    if accelerator.num_processes > 1:
        _check_replicated_weights_equal(model)


def _check_fsdp2_sharding_and_device(accelerator: Accelerator, model: nn.Module) -> None:
    """Checks over how many ranks FSDP2 has sharded parameters, and where they are."""
    ignored = {id(p) for p in ignored_fp32_parameters(accelerator)}
    sharded = {
        name: parameter
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor) and id(parameter) not in ignored
    }
    if not sharded:
        raise RuntimeError("FSDP2 was asked for, but no parameter is sharded")
    # matrices that are sharded over TP ranks have a mesh dimension for them, the others need none
    sizes = {dp_size(accelerator), accelerator.num_processes}
    plugin: Any = accelerator.state.fsdp_plugin
    device = "cpu" if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else accelerator.device.type
    for name, parameter in sharded.items():
        if parameter.device_mesh.size() not in sizes:
            raise RuntimeError(
                f"{name} is sharded over {parameter.device_mesh.size()} ranks of "
                f"{accelerator.num_processes}"
            )
        found = detached_shard_or_tensor_itself(parameter).device
        if found.type != device:
            raise RuntimeError(f"{name} is kept on {found}, not on {device}")


def _check_replicated_weights_equal(model: nn.Module) -> None:
    """Checks that all ranks that hold a copy of a weight hold the same bits."""
    # by mesh dimension over which weights are replicated; None stands for all ranks
    checksums: dict[tuple[DeviceMesh, int] | None, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            checksums.setdefault(None, {})[name] = _sum_of_bit_patterns(parameter)
            continue
        for dim, placement in enumerate(parameter.placements):
            if placement.is_replicate():
                by_name = checksums.setdefault((parameter.device_mesh, dim), {})
                by_name[name] = _sum_of_bit_patterns(detached_shard_or_tensor_itself(parameter))
    for key, by_name in checksums.items():
        group = None if key is None else key[0].get_group(key[1])
        different = _names_that_differ_between_copies(by_name, group)
        if different:
            raise RuntimeError(
                f"the {get_world_size(group)} copies of {len(different)} parameters differ, such "
                f"as {different[0]}"
            )


def _names_that_differ_between_copies(
    checksums: Mapping[str, Tensor], group: ProcessGroup | None, *, ranks_per_copy: int = 1
) -> list[str]:
    """Names whose checksum differs between ranks of a group that hold the same part of a copy."""
    gathered = all_gather_stacked(torch.stack(list(checksums.values())), group)
    # [copies, ranks, parameters]
    gathered = gathered.unflatten(0, (-1, ranks_per_copy))
    differs = (gathered != gathered[:1]).any(dim=(0, 1)).tolist()
    return [name for name, differ in zip(checksums, differs, strict=True) if differ]


def _sum_of_bit_patterns(weights: Tensor) -> Tensor:
    """The sum of the bits of all elements, 0-dimensional int64; NaNs have bits, too."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weights.element_size()]
    return weights.detach().view(integers).sum(dtype=torch.int64)
