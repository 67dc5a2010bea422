"""Muon: momentum whose matrices are made orthogonal, with AdamW for everything that is no matrix.

With G the gradient of a matrix W [rows, cols], B its momentum and m = 0.95 (Nesterov's form):

    B <- m B + (1 - m) G
    W <- (1 - lr decay) W - 0.2 lr sqrt(max(rows, cols)) O,    O = orthogonalize((1 - m) G + m B)

Muon, its iteration and coefficients: https://kellerjordan.github.io/posts/muon/. The factor gives
an update the root mean square that one of AdamW has, so that one learning rate and one weight decay
serve both: Moonlight, https://arxiv.org/abs/2502.16982, section 2.2.

An orthogonal matrix cannot be computed from a share of it. A sharded matrix is brought together on
one rank, different matrices on different ranks, and its orthogonal one is dealt out again, so that
the work is shared as the weights are. Which parameters are matrices is decided in `optimizer`.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_to_all_single, get_rank
from torch.distributed.tensor import DTensor

from flame_accel.training.adam import AdamW, local_gradient, local_share

MOMENTUM = 0.95
UPDATE_RMS = 0.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7
# bounds the memory of matrices that are iterated on together
BATCH_ELEMENTS = 2**26


class Muon(AdamW):
    """Muon for the groups that have `matrices` true, AdamW for the others.

    Like torch's fused optimizers it leaves weights and state as they are if `found_inf` says 1, a
    tensor on the device.
    """

    found_inf: Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # that of torch's Adam looks for Adam's state in every parameter
        torch.optim.Optimizer.__setstate__(self, state)

    def _init_group(
        self, group: dict[str, Any], params_with_grad: list[Tensor], *tensors: list[Tensor]
    ) -> bool:
        if group["matrices"]:
            return False
        return super()._init_group(group, params_with_grad, *tensors)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient; all ranks call it where one is sharded."""
        super().step(closure)
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                sharded = isinstance(parameter, DTensor)
                layout = (parameter.device_mesh, parameter.placements) if sharded else None
                alike[parameter.shape, layout].append(parameter)
        for parameters in alike.values():
            followed = torch.stack([self._follow(parameter) for parameter in parameters])
            shape = parameters[0].shape
            orthogonal = _orthogonalize_shares(followed, shape, _splits(parameters[0]))
            scale = UPDATE_RMS * math.sqrt(max(shape)) * group["lr"]
            for parameter, update in zip(parameters, orthogonal, strict=True):
                weight = local_share(parameter)
                moved = weight * (1 - group["lr"] * group["weight_decay"])
                self._keep(weight, moved.add_(update.to(weight.device), alpha=-scale))

    def _follow(self, parameter: Tensor) -> Tensor:
        """Moves the momentum of a matrix; what is to be made orthogonal, this rank's share."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        gradient, momentum = local_gradient(parameter), local_share(state["momentum_buffer"])
        self._keep(momentum, momentum.lerp(gradient, 1 - MOMENTUM))
        return _to_compute(gradient.lerp(momentum, MOMENTUM), parameter)

    def _keep(self, old: Tensor, new: Tensor) -> None:
        """Writes the new values over the old ones, unless this update is to be skipped."""
        if self.found_inf is not None:
            new = torch.where(self.found_inf.to(old.device) > 0, old, new)
        old.copy_(new)


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, roughly: singular values near 1.

    Newton-Schulz iteration X <- a X + (b X X' + c (X X')^2) X, in the dtype of the argument. Its
    coefficients grow small singular values fast, to between about 0.7 and 1.2, and stay there.

    Args:
        matrices: [n, rows, cols].
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _to_compute(share: Tensor, parameter: Tensor) -> Tensor:
    """Where and in what dtype the iteration runs: GPUs have fast products of bfloat16."""
    # of weights that wait in CPU memory the mesh knows where they are used
    device = parameter.device_mesh.device_type if isinstance(parameter, DTensor) else share.device
    dtype = torch.bfloat16 if torch.device(device).type in ("cuda", "xpu") else torch.float32
    return share.to(device, dtype)


def _splits(parameter: Tensor) -> list[tuple[int, ProcessGroup]]:
    """Along which dimensions a matrix is split over which ranks, the last split first."""
    if not isinstance(parameter, DTensor):
        return []
    placements: Any = parameter.placements
    # data parallelism, before tensor parallelism in the mesh, splits what that has left of a matrix
    return [
        (placement.dim, parameter.device_mesh.get_group(i))
        for i, placement in enumerate(placements)
        if not placement.is_replicate()
    ]


def _lengths(size: int, parts: int) -> list[int]:
    """How torch.chunk, and so every engine, splits a dimension; the last ones may get nothing."""
    most = -(-size // parts)
    return [max(0, min(most, size - i * most)) for i in range(parts)]


def _orthogonalize_shares(
    stack: Tensor, shape: torch.Size, splits: list[tuple[int, ProcessGroup]]
) -> Tensor:
    """Makes matrices orthogonal of which every rank holds a share; all of its ranks call it.

    The ranks of a split deal the matrices out among themselves, put theirs together, and deal the
    shares of the orthogonal ones back.

    Args:
        stack: This rank's shares, [n, *share].
        shape: Of a whole matrix.
        splits: Of the matrices, the last one first.

    Returns:
        [n, *share].
    """
    if not splits:
        size = max(1, BATCH_ELEMENTS // shape.numel())
        return torch.cat([orthogonalize(batch) for batch in stack.split(size)])
    (dim, group), *earlier = splits
    size = shape[dim]
    for other, peers in reversed(earlier):
        size = _lengths(size, peers.size())[get_rank(peers)] if other == dim else size
    lengths = _lengths(size, group.size())
    counts = [len(part) for part in torch.arange(len(stack)).tensor_split(group.size())]
    dealt = [counts[get_rank(group)], *stack.shape[1:]]
    shapes = [[*dealt[: 1 + dim], length, *dealt[2 + dim :]] for length in lengths]
    mine = [count * stack.shape[1:].numel() for count in counts]
    others = [math.prod(of_rank) for of_rank in shapes]
    received = stack.new_empty(sum(others))
    all_to_all_single(received, stack.flatten(), others, mine, group=group)
    parts = zip(received.split(others), shapes, strict=True)
    whole = torch.cat([part.view(of_rank) for part, of_rank in parts], dim=1 + dim)
    orthogonal = _orthogonalize_shares(whole, shape, earlier).split(lengths, dim=1 + dim)
    returned = torch.empty_like(stack)
    answer = torch.cat([part.flatten() for part in orthogonal])
    all_to_all_single(returned.view(-1), answer, mine, others, group=group)
    return returned
