"""The gradient of all ranks after the last backward pass: its norm, and clipping to it.

How gradients are summed over ranks is the engine's business; what a step does with the norm is in
`training.step`. Parameters may be whole on every rank, sharded, split over peers, or mixed: each
number of a gradient counts once, whoever holds it.
"""

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import get_total_norm


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> Tensor:
    """Scales the gradients of all ranks down to an L2 norm of at most `max_norm`; 0 only measures.

    Nothing here asks the device for a value, unless gradients are kept in CPU memory.

    Args:
        accelerator: Of the run.
        model: Prepared.
        max_norm: Bound of the norm.

    Returns:
        The norm before clipping, the same on every rank, 0-dimensional and where the gradients are:
        on the device, or in CPU memory.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    pieces = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    offloaded = any(piece.device.type == "cpu" for piece in pieces)
    home = torch.device("cpu") if offloaded else accelerator.device
    norm = _total_norm(gradients, home)
    if max_norm:
        # as torch's own clipping; a norm that is not finite is left to the guard of the step
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for device in {piece.device for piece in pieces}:
            there = [piece for piece in pieces if piece.device == device]
            torch.ops.aten._foreach_mul_.Tensor(there, scale.to(device))
    return norm


def _total_norm(gradients: list[Tensor], home: torch.device) -> Tensor:
    """The L2 norm of all numbers of some gradients, 0-dimensional."""
    # pieces by who holds the others: mesh and the axes over which they are dealt out
    groups: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for gradient in gradients:
        if not isinstance(gradient, DTensor):
            groups.setdefault((None, ()), []).append(gradient)
            continue
        whole = _without_partial_sums(gradient)
        axes = [axis for axis, where in enumerate(whole.placements) if not where.is_replicate()]
        groups.setdefault((whole.device_mesh, tuple(axes)), []).append(whole.to_local())
    total = torch.zeros((), device=home)
    for (mesh, axes), pieces in groups.items():
        square = get_total_norm(pieces).square()
        for axis in axes:
            assert mesh is not None
            torch.distributed.all_reduce(square, group=mesh.get_group(axis))
        total += square.to(home)
    return total.sqrt()


def _without_partial_sums(gradient: DTensor) -> DTensor:
    """The same gradient with sums that ranks hold parts of added up."""
    if not any(where.is_partial() for where in gradient.placements):
        return gradient
    added = [Replicate() if where.is_partial() else where for where in gradient.placements]
    return gradient.redistribute(placements=added)
