"""The exchanges between peers inside of a model, with their gradients.

Every tensor outside of a region is the same on all peers, and so is its gradient. Exchanges are
torch's functional ones, which its compiler knows.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup, _functional_collectives


def reduce_over_peers(tensor: Tensor, operation: str, group: ProcessGroup) -> Tensor:
    """The element-wise "sum" or "max" of all peers' tensors, a new one; without a gradient."""
    reduced = _functional_collectives.all_reduce(tensor.contiguous(), operation, group)
    return _functional_collectives.wait_tensor(reduced)


class _Sum(Function):
    """Sums over peers in the forward pass, in the backward pass, or in both."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: ProcessGroup, forward: bool, backward: float
    ) -> Tensor:
        ctx.group, ctx.factor = group, backward
        return reduce_over_peers(tensor, "sum", group) if forward else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        if ctx.factor:
            grad = reduce_over_peers(grad, "sum", ctx.group)
        if ctx.factor not in (0.0, 1.0):
            grad = grad * ctx.factor
        return grad, None, None, None


def enter(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Into a region, or a whole parameter of one: its gradient is the sum of the peers' shares."""
    return _Sum.apply(tensor, group, False, 1.0)


def leave(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Out of a region: the sum of all peers' outputs, each of which gets the whole gradient."""
    return _Sum.apply(tensor, group, True, 0.0)


def sum_inside(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """A sum over peers that each goes on to use for its own features."""
    return _Sum.apply(tensor, group, True, 1.0)


def average_gradient(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """A parameter outside of regions: peers have equal gradients, but for the order of sums.

    Kernels that each process tunes for itself may sum in different orders; the average keeps the
    copies equal to the last bit.
    """
    return _Sum.apply(tensor, group, False, 1.0 / group.size())
