"""What one rank holds of a sharded tensor: its shard, who holds the rest, and the full shape.

The one place that looks inside a DTensor for optimizers, gradient norms, checks and checkpoints.
Where parameters become DTensors for tensor parallelism is `tensor/dtensor_parameters`; FSDP2 and
DeepSpeed shard by themselves.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import get_world_size, is_initialized
from torch.distributed.tensor import DTensor, Replicate


class ShardExtent(NamedTuple):
    """The part of a dimension that one shard covers; empty where `length` is 0."""

    start: int
    length: int


def shard_start_and_length(size: int, num_shards: int, index: int) -> ShardExtent:
    """The part of a dimension of `size` elements that shard `index` of `num_shards` covers.

    Shards are cut as torch.chunk and DTensor cut them: the last ones may be shorter, or empty.
    """
    longest = -(-size // num_shards)
    start = min(index * longest, size)
    return ShardExtent(start, min(longest, size - start))


def detached_shard_or_tensor_itself(tensor: Tensor) -> Tensor:
    """The elements of a tensor that this rank holds: all of them unless it is a DTensor.

    Shares memory with the tensor and has no autograd history, which `DTensor.to_local` would add.
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def reduce_partial(tensor: Tensor) -> Tensor:
    """A DTensor whose partial sums are added up over the ranks that hold them; others as they are.

    Communicates only where a mesh dimension is `Partial`; all ranks of the mesh must call it.
    """
    if not isinstance(tensor, DTensor) or not any(p.is_partial() for p in tensor.placements):
        return tensor
    reduced = [Replicate() if p.is_partial() else p for p in tensor.placements]
    return tensor.redistribute(placements=reduced)


def gradient_in_parameter_placements(parameter: Tensor) -> Tensor:
    """The gradient of a parameter, redistributed to the parameter's own placements.

    A replicated weight under tensor parallelism gets a partial sum on each TP rank, which is added
    up here; all ranks of the mesh must call it.
    """
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        gradient = gradient.redistribute(placements=parameter.placements)
    return gradient


def local_gradient(parameter: Tensor) -> Tensor:
    """This rank's part of `gradient_in_parameter_placements`, which all ranks of the mesh call."""
    return detached_shard_or_tensor_itself(gradient_in_parameter_placements(parameter))


def sharded_mesh_dims(tensor: Tensor) -> list[int]:
    """The dimensions of its mesh over which a tensor is sharded; none for a plain tensor."""
    if not isinstance(tensor, DTensor):
        return []
    return [dim for dim, where in enumerate(tensor.placements) if not where.is_replicate()]


def num_ranks_of_run_with_copy(tensor: Tensor) -> int:
    """Number of ranks of the run that hold each element of a tensor; 1 without a process group."""
    if not is_initialized():
        return 1
    num_shards = 1
    if isinstance(tensor, DTensor):
        num_shards = math.prod(map(tensor.device_mesh.size, sharded_mesh_dims(tensor)))
    return get_world_size() // num_shards


def full_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter before any sharding.

    A DTensor reports it as its shape; ZeRO-3 empties parameters between uses and keeps it apart.
    """
    return vars(parameter).get("ds_shape", parameter.shape)
