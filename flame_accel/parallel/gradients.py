"""The gradient of all ranks after the last backward pass: its norm, and clipping by it.

The engines sum gradients over ranks; what a step does with the norm is in `training.step`.
Parameters may be replicated, sharded by FSDP2, sharded over TP ranks, or a mixture: each element of
a gradient counts once, whichever ranks hold it.
"""

from typing import NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from flame_accel.parallel.sharded_tensors import (
    detached_shard_or_tensor_itself,
    reduce_partial,
    sharded_mesh_dims,
)


class UpdateResult(NamedTuple):
    """What an optimizer update did, the same on every rank; tensors that nobody has waited for."""

    grad_norm: Tensor
    """L2 norm of the gradient of all ranks before clipping, 0-dimensional."""
    skipped: Tensor
    """1.0 if the update was skipped, else 0.0; 0-dimensional."""


def clip_gradients_and_get_norm(
    accelerator: Accelerator, model: nn.Module, max_norm: float
) -> Tensor:
    """Scales the gradients of all ranks down to an L2 norm of at most `max_norm`, in place.

    Never waits for the device, unless gradients are kept in CPU memory. All ranks must call it.

    Args:
        accelerator: The run's Accelerator, for its device.
        model: The prepared model, after its last backward pass.
        max_norm: Upper bound of the norm; 0 leaves the gradients alone.

    Returns:
        The norm before clipping, the same on every rank, 0-dimensional and where the gradients are:
        on the device, or in CPU memory.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    shards = [detached_shard_or_tensor_itself(gradient) for gradient in gradients]
    offloaded = any(shard.device.type == "cpu" for shard in shards)
    norm = _global_norm(gradients, torch.device("cpu") if offloaded else accelerator.device)
    if max_norm:
        # as torch's own clipping; a norm that is not finite is left to the guard of the step
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for device in {shard.device for shard in shards}:
            on_device = [shard for shard in shards if shard.device == device]
            torch.ops.aten._foreach_mul_.Tensor(on_device, scale.to(device))
    return norm


def _global_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """The L2 norm of all elements of some gradients over all ranks, 0-dimensional on `device`."""
    # local shards by mesh, and by the mesh dimensions over which the squares have to be summed
    shards: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for gradient in map(reduce_partial, gradients):
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        key = (mesh, tuple(sharded_mesh_dims(gradient)))
        shards.setdefault(key, []).append(detached_shard_or_tensor_itself(gradient))
    total = torch.zeros((), device=device)
    for (mesh, dims), tensors in shards.items():
        square = get_total_norm(tensors).square()
        for dim in dims:
            assert mesh is not None
            torch.distributed.all_reduce(square, group=mesh.get_group(dim))
        total += square.to(device)
    return total.sqrt()
