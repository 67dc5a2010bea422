"""What an Accelerator is: the degrees of its mesh, its precision, and one line about both.

Comparing it with what was asked for is the work of `checks`.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy

from flame_accel.parallel.deepspeed import describe_zero_stage_and_offload, is_deepspeed
from flame_accel.parallel.topology import Degrees, Precision


def mesh_degrees(accelerator: Accelerator) -> Degrees:
    """The sizes of the realized mesh; without one, all ranks are replicas or all are shards."""
    mesh: DeviceMesh | None = accelerator.state.device_mesh
    if mesh is not None:
        sizes = dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True))
        return Degrees(sizes.get("dp_replicate", 1), sizes.get("dp_shard", 1), sizes.get("tp", 1))
    world_size = accelerator.num_processes
    sharded = accelerator.is_fsdp2 or is_deepspeed(accelerator)
    return Degrees(1, world_size, 1) if sharded else Degrees(world_size, 1, 1)


def compute_dtype(accelerator: Accelerator) -> Precision:
    """The dtype of most of a forward pass; master weights are fp32 under every engine."""
    if is_deepspeed(accelerator):
        plugin: Any = accelerator.state.deepspeed_plugin
        half = plugin.deepspeed_config["torch_autocast"]["enabled"]
    else:
        half = accelerator.mixed_precision == "bf16"
    return "bfloat16" if half else "float32"


def describe_topology(accelerator: Accelerator) -> str:
    """One line: devices, engine, mesh and precision as realized."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    world_size = accelerator.num_processes
    machines = world_size // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    devices = f"{world_size} x {name}" + (f" on {machines} machines" if machines > 1 else "")
    degrees = mesh_degrees(accelerator)
    axes = [f"{degrees.dp_replicate} replicas"] * (degrees.dp_replicate > 1)
    axes += [f"{degrees.dp_shard} shards"] * (degrees.dp_shard > 1)
    axes += [f"{degrees.tp} TP ranks"] * (degrees.tp > 1)
    precision = "bf16 autocast" if compute_dtype(accelerator) == "bfloat16" else "fp32"
    if is_deepspeed(accelerator):
        engine = describe_zero_stage_and_offload(accelerator)
    elif accelerator.is_fsdp2:
        plugin: Any = accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        engine = "HSDP" if degrees.dp_replicate > 1 else "FSDP2"
        precision = f"parameters {policy.param_dtype}, reduction {policy.reduce_dtype}"
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            precision += ", kept in CPU memory"
    elif accelerator.num_processes == 1:
        engine = "one process"
    else:
        engine = "DDP" if degrees.tp == 1 else ""
    if degrees.tp > 1:
        engine = f"{engine} and tensor parallelism" if engine else "tensor parallelism"
    mesh = f": {' x '.join(axes)}" if axes else ""
    return f"{devices}, {engine}{mesh}, {precision.replace('torch.', '')}"
