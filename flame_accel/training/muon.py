"""Muon: orthogonalized momentum for matrices, and AdamW for all other parameters.

With G the gradient of a matrix W [rows, cols], B its momentum and m = 0.95 (Nesterov's form):

    B <- m B + (1 - m) G
    W <- (1 - lr decay) W - 0.2 lr sqrt(max(rows, cols)) O,    O = orthogonalize((1 - m) G + m B)

Muon, its iteration and coefficients: https://kellerjordan.github.io/posts/muon/. The factor gives
an update the root mean square of one of AdamW, so that both use the same learning rate and weight
decay: Moonlight, https://arxiv.org/abs/2502.16982, section 2.2.

A shard of a matrix is not enough to orthogonalize it. Each sharded matrix is gathered on one rank,
different matrices on different ranks, and its result is scattered again, so that the work is
divided like the weights. Which parameters are matrices is decided in `optimizer`.
"""

import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_to_all_single, get_rank
from torch.distributed.tensor import DTensor

from flame_accel.models.parameter_groups import ParameterGroup
from flame_accel.parallel.sharded_tensors import (
    detached_shard_or_tensor_itself,
    local_gradient,
    shard_start_and_length,
    sharded_mesh_dims,
)
from flame_accel.training.adam import AdamWOnLocalShards

MOMENTUM = 0.95
UPDATE_RMS = 0.2
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MIN_NORM = 1e-7
BATCH_ELEMENTS = 2**26
"""Elements of matrices that are iterated on at the same time, which bounds the memory it takes."""


class Muon(AdamWOnLocalShards):
    """Muon for the groups with `matrices` true, AdamW for the others.

    Like torch's fused optimizers it changes neither weights nor state where `found_inf`, a tensor
    on the device, is 1.
    """

    found_inf: Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # that of torch's Adam expects Adam's state for every parameter
        torch.optim.Optimizer.__setstate__(self, state)

    def _init_group(
        self, group: ParameterGroup, params_with_grad: list[Tensor], *adamw_lists: list[Tensor]
    ) -> bool:
        """AdamW's, for the groups that it updates; groups of matrices add nothing to its lists."""
        if group["matrices"]:
            return False
        return super()._init_group(group, params_with_grad, *adamw_lists)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient; all ranks of the run must call it."""
        super().step(closure)
        for group in self.param_groups:
            if group["matrices"]:
                self._update_matrices_in_place(group)

    def _update_matrices_in_place(self, group: ParameterGroup) -> None:
        by_layout: dict[Any, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                sharded = isinstance(parameter, DTensor)
                layout = (parameter.device_mesh, parameter.placements) if sharded else None
                by_layout[parameter.shape, layout].append(parameter)
        for parameters in by_layout.values():
            shards = torch.stack(
                [
                    self._update_momentum_and_get_nesterov_shard(parameter)
                    for parameter in parameters
                ]
            )
            shape = parameters[0].shape
            orthogonal = _gather_orthogonalize_and_scatter_shards(
                shards, shape, _find_sharded_dims_last_first(parameters[0])
            )
            scale = UPDATE_RMS * math.sqrt(max(shape)) * group["lr"]
            for parameter, update in zip(parameters, orthogonal, strict=True):
                weight = detached_shard_or_tensor_itself(parameter)
                moved = weight * (1 - group["lr"] * group["weight_decay"])
                self._copy_unless_found_inf(
                    weight, moved.add_(update.to(weight.device), alpha=-scale)
                )

    def _update_momentum_and_get_nesterov_shard(self, parameter: Tensor) -> Tensor:
        """Updates the momentum of a matrix in place; this rank's shard of its Nesterov form."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        gradient, momentum = (
            local_gradient(parameter),
            detached_shard_or_tensor_itself(state["momentum_buffer"]),
        )
        self._copy_unless_found_inf(momentum, momentum.lerp(gradient, 1 - MOMENTUM))
        return _to_newton_schulz_device_and_dtype(gradient.lerp(momentum, MOMENTUM), parameter)

    def _copy_unless_found_inf(self, destination: Tensor, source: Tensor) -> None:
        """Copies `source` into `destination`, unless this update is to be skipped."""
        if self.found_inf is not None:
            source = torch.where(self.found_inf.to(destination.device) > 0, destination, source)
        destination.copy_(source)


def orthogonalize_by_newton_schulz(matrices: Tensor) -> Tensor:
    """Approximately the nearest matrices with orthonormal rows or columns [n, rows, cols].

    Newton-Schulz iteration X <- a X + (b X X' + c (X X')^2) X, in the dtype of the argument. Its
    coefficients move small singular values fast to between about 0.7 and 1.2, where they stay.

    Args:
        matrices: [n, rows, cols].
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=MIN_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _to_newton_schulz_device_and_dtype(shard: Tensor, parameter: Tensor) -> Tensor:
    """Moves to the device and dtype of the iteration: GPUs have fast products in bfloat16."""
    # where weights are kept in CPU memory, the mesh has the device on which they are used
    device = parameter.device_mesh.device_type if isinstance(parameter, DTensor) else shard.device
    dtype = torch.bfloat16 if torch.device(device).type in ("cuda", "xpu") else torch.float32
    return shard.to(device, dtype)


class _ShardedDim(NamedTuple):
    """One way in which a matrix is sharded."""

    dim: int
    """Dimension of the matrix."""
    group: ProcessGroup
    """Ranks that hold the shards, in their order."""


def _find_sharded_dims_last_first(parameter: Tensor) -> list[_ShardedDim]:
    """How a matrix is sharded, the split that was made last first; nothing for a plain tensor."""
    if not isinstance(parameter, DTensor):
        return []
    placements: Any = parameter.placements
    # data parallelism, before tensor parallelism in the mesh, shards what TP has left of a matrix
    return [
        _ShardedDim(placements[mesh_dim].dim, parameter.device_mesh.get_group(mesh_dim))
        for mesh_dim in sharded_mesh_dims(parameter)
    ]


def _gather_orthogonalize_and_scatter_shards(
    shards: Tensor, full_shape: torch.Size, sharded_dims: list[_ShardedDim]
) -> Tensor:
    """Orthogonalizes matrices of which this rank holds shards; all ranks of the groups must call.

    The ranks of the last split assign the matrices to each other, gather each on its rank by an
    all-to-all, and send the shards of the results back by another.

    Args:
        shards: [n, *shard], this rank's shards of n matrices.
        full_shape: Shape of a full matrix.
        sharded_dims: How the matrices are sharded, the split that was made last first.

    Returns:
        [n, *shard], this rank's shards of the results.
    """
    if not sharded_dims:
        batch_size = max(1, BATCH_ELEMENTS // full_shape.numel())
        return torch.cat(
            [orthogonalize_by_newton_schulz(batch) for batch in shards.split(batch_size)]
        )
    (dim, group), *earlier = sharded_dims
    size = full_shape[dim]
    for split in reversed(earlier):
        if split.dim == dim:
            size = shard_start_and_length(size, split.group.size(), get_rank(split.group)).length
    # of each rank's shard along `dim`, and the number of matrices assigned to each rank
    lengths = [
        shard_start_and_length(size, group.size(), rank).length for rank in range(group.size())
    ]
    counts = [len(part) for part in torch.arange(len(shards)).tensor_split(group.size())]
    assigned = [counts[get_rank(group)], *shards.shape[1:]]
    shapes = [[*assigned[: 1 + dim], length, *assigned[2 + dim :]] for length in lengths]
    send_sizes = [count * shards.shape[1:].numel() for count in counts]
    receive_sizes = [math.prod(shape_of_rank) for shape_of_rank in shapes]
    received = shards.new_empty(sum(receive_sizes))
    all_to_all_single(received, shards.flatten(), receive_sizes, send_sizes, group=group)
    parts = zip(received.split(receive_sizes), shapes, strict=True)
    gathered = torch.cat([part.view(shape_of_rank) for part, shape_of_rank in parts], dim=1 + dim)
    results = _gather_orthogonalize_and_scatter_shards(gathered, full_shape, earlier).split(
        lengths, dim=1 + dim
    )
    returned = torch.empty_like(shards)
    outgoing = torch.cat([part.flatten() for part in results])
    all_to_all_single(returned.view(-1), outgoing, send_sizes, receive_sizes, group=group)
    return returned
