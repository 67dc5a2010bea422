"""What came out of a launch and of `prepare`, compared with what was promised, and in words.

Every check raises before the first step: a run that is spread over its processes otherwise than
was asked for trains well enough to be noticed late.
"""

import os
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from flame_accel.config import UserError
from flame_accel.parallel.deepspeed import describe_deepspeed, is_deepspeed, optimized_parameters
from flame_accel.parallel.fp32_parameters import ignored_fp32_parameters
from flame_accel.parallel.ranks import dp_size, tp_size
from flame_accel.parallel.topology import Precision, Topology

# what accelerate calls an engine, on devices and over gloo
TYPES = {
    "single": {DistributedType.NO},
    "ddp": {DistributedType.MULTI_GPU, DistributedType.MULTI_XPU, DistributedType.MULTI_CPU},
    "fsdp2": {DistributedType.FSDP},
    "tensor": {DistributedType.MULTI_GPU, DistributedType.MULTI_XPU},
    "deepspeed": {DistributedType.DEEPSPEED},
}


def check_launch(accelerator: Accelerator, topology: Topology) -> None:
    """Compares an Accelerator with the layout that it was built for.

    Raises:
        UserError: The launcher's ranks did not come together as that.
    """
    if accelerator.num_processes != topology.world:
        raise UserError(
            f"{topology.world} processes were launched but this one sees "
            f"{accelerator.num_processes}",
            where="the accelerate configuration",
            remedy="launch with a file of accelerate_configs/, which say what each needs",
        )
    realised: dict[str, Any] = {
        "engine": accelerator.distributed_type in TYPES[topology.engine],
        "FSDP version 2": accelerator.is_fsdp2 == (topology.engine == "fsdp2"),
        "mesh": _degrees(accelerator) == _promised_degrees(topology),
    }
    broken = [what for what, kept in realised.items() if not kept]
    if broken:
        raise UserError(
            f"the launch gave {accelerator.distributed_type.value} over {_degrees(accelerator)}, "
            f"asked for was {topology.engine} over {_promised_degrees(topology)} "
            f"({', '.join(broken)})",
            where="distributed_type of the accelerate configuration",
            remedy="launch with a file of accelerate_configs/, which say what each needs",
        )


def _promised_degrees(topology: Topology) -> tuple[int, int, int]:
    return topology.replicate, topology.shard, topology.tensor


def _degrees(accelerator: Accelerator) -> tuple[int, int, int]:
    """Replicas, shards and peers of the realised mesh."""
    mesh: DeviceMesh | None = accelerator.state.device_mesh
    if mesh is not None:
        names = mesh.mesh_dim_names or ()
        sizes = dict(zip(names, mesh.shape, strict=True))
        return sizes.get("dp_replicate", 1), sizes.get("dp_shard", 1), sizes.get("tp", 1)
    world = accelerator.num_processes
    sharded = accelerator.is_fsdp2 or is_deepspeed(accelerator)
    return (1, world, 1) if sharded else (world, 1, 1)


def check_initial_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Compares the weights that each rank has built, before an engine makes one model of them.

    Sharding takes every piece from another rank and looks at none of the others.

    Raises:
        RuntimeError: Ranks that should have built the same have not, or there are no numbers.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        # accelerate tells parameters apart by their addresses, which would all be 0
        raise RuntimeError("the model has no weights yet: it is on the meta device")
    if accelerator.num_processes == 1:
        return
    peers = tp_size(accelerator)
    own = torch.stack([_checksum(_held(p)) for p in model.parameters()]).to(accelerator.device)
    # [data ranks, peers, parameters]: peers are neighbours, and hold different pieces
    every = _gather(own, None).unflatten(0, (-1, peers))
    differs = (every != every[:1]).any(dim=(0, 1)).tolist()
    names = [name for name, _ in model.named_parameters()]
    apart = [name for name, differ in zip(names, differs, strict=True) if differ]
    if apart:
        raise RuntimeError(
            f"ranks have built different initial weights of {len(apart)} parameters, such as "
            f"{apart[0]}"
        )


def check_prepared(
    accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer
) -> None:
    """Compares a prepared model and optimizer with each other and with the Accelerator's promises.

    Raises:
        RuntimeError: A parameter has no optimizer, is not sharded as promised, or differs between
            its copies.
    """
    if is_deepspeed(accelerator):
        held = {id(p) for p in optimized_parameters(optimizer)}
    else:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owned = {id(p) for p in model.parameters() if p.requires_grad}
    if held != owned:
        raise RuntimeError(
            f"after prepare the optimizer holds {len(held)} parameters, the model {len(owned)}, "
            f"{len(held & owned)} of them the same"
        )
    if accelerator.is_fsdp2:
        _check_sharding(accelerator, model)
    if accelerator.num_processes > 1:
        _check_replicas(model)


def _check_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    whole = {id(p) for p in ignored_fp32_parameters(accelerator)}
    sharded = {
        name: parameter
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor) and id(parameter) not in whole
    }
    if not sharded:
        raise RuntimeError("FSDP2 was asked for, but no parameter is sharded")
    # matrices that are split over peers have an axis for them, the others need none
    sizes = {dp_size(accelerator), accelerator.num_processes}
    plugin: Any = accelerator.state.fsdp_plugin
    device = "cpu" if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else accelerator.device.type
    for name, parameter in sharded.items():
        if parameter.device_mesh.size() not in sizes:
            raise RuntimeError(
                f"{name} is spread over {parameter.device_mesh.size()} ranks of "
                f"{accelerator.num_processes}"
            )
        if parameter.to_local().device.type != device:
            raise RuntimeError(f"{name} is kept on {parameter.to_local().device}, not on {device}")


def _check_replicas(model: nn.Module) -> None:
    """Compares the copies of weights, bit by bit, over the ranks that hold one."""
    copies: dict[tuple[DeviceMesh, int] | None, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            copies.setdefault(None, {})[name] = _checksum(parameter)
            continue
        for axis, placement in enumerate(parameter.placements):
            if placement.is_replicate():
                key = (parameter.device_mesh, axis)
                copies.setdefault(key, {})[name] = _checksum(_held(parameter))
    for key, checksums in copies.items():
        every = _gather(torch.stack(list(checksums.values())), key and key[0].get_group(key[1]))
        differs = (every != every[0]).any(dim=0).tolist()
        apart = [name for name, differ in zip(checksums, differs, strict=True) if differ]
        if apart:
            raise RuntimeError(
                f"the {len(every)} copies of {len(apart)} parameters differ, such as {apart[0]}"
            )


def _held(weights: Tensor) -> Tensor:
    """What this rank holds of a parameter."""
    return weights.to_local() if isinstance(weights, DTensor) else weights


def _checksum(weights: Tensor) -> Tensor:
    """The sum of the bits of all numbers, 0-dimensional; not a number has bits, too."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weights.element_size()]
    return weights.detach().view(integers).sum(dtype=torch.int64)


def _gather(own: Tensor, group: ProcessGroup | None) -> Tensor:
    """Every rank's tensor, in a new first dimension."""
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, own, group=group)
    return torch.stack(gathered)


def compute_precision(accelerator: Accelerator) -> Precision:
    """The type in which most of a model computes; its masters are fp32 under every engine."""
    if is_deepspeed(accelerator):
        plugin: Any = accelerator.state.deepspeed_plugin
        half = plugin.deepspeed_config["torch_autocast"]["enabled"]
    else:
        half = accelerator.mixed_precision == "bf16"
    return "bfloat16" if half else "float32"


def describe_topology(accelerator: Accelerator) -> str:
    """One line: devices, engine, mesh and precision as realised."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    world = accelerator.num_processes
    machines = world // int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    spread = f"{world} x {name}" + (f" on {machines} machines" if machines > 1 else "")
    return f"{spread}, {_describe_engine(accelerator)}"


def _describe_engine(accelerator: Accelerator) -> str:
    replicas, shards, peers = _degrees(accelerator)
    axes = [f"{replicas} replicas"] * (replicas > 1) + [f"{shards} shards"] * (shards > 1)
    if peers > 1:
        axes.append(f"{peers} peers")
    precision = "bf16 autocast" if compute_precision(accelerator) == "bfloat16" else "fp32"
    if is_deepspeed(accelerator):
        engine, _ = describe_deepspeed(accelerator)
    elif accelerator.is_fsdp2:
        plugin: Any = accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        engine = "HSDP" if replicas > 1 else "FSDP2"
        precision = f"parameters {policy.param_dtype}, reduction {policy.reduce_dtype}"
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            precision += ", kept in CPU memory"
    elif accelerator.num_processes == 1:
        engine = "one process"
    else:
        engine = "DDP" if peers == 1 else ""
    if peers > 1:
        engine = f"{engine} and tensor parallelism" if engine else "tensor parallelism"
    mesh = f": {' x '.join(axes)}" if axes else ""
    return f"{engine}{mesh}, {precision.replace('torch.', '')}"
