"""All-reduces over a TP group inside a model, with their gradients.

Every activation outside of a region is the same on all TP ranks, and so is its gradient; at the
ends of a region the two functions of Megatron-LM (1909.08053, section 3) keep it so. They use
torch's functional collectives, which its compiler traces.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup, _functional_collectives


def all_reduce_without_gradient(tensor: Tensor, operation: str, group: ProcessGroup) -> Tensor:
    """The element-wise "sum" or "max" over a TP group as a new tensor; not differentiable."""
    reduced = _functional_collectives.all_reduce(tensor.contiguous(), operation, group)
    return _functional_collectives.wait_tensor(reduced)


class _AllReduceSum(Function):
    """A sum over a TP group in the forward pass, in the backward pass, or in both."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: ProcessGroup, reduce_forward: bool, grad_scale: float
    ) -> Tensor:
        """Sums if `reduce_forward`; the summed gradient is scaled, 0 leaves it local as it is."""
        ctx.group, ctx.grad_scale = group, grad_scale
        return (
            all_reduce_without_gradient(tensor, "sum", group)
            if reduce_forward
            else tensor.view_as(tensor)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        if ctx.grad_scale:
            grad = all_reduce_without_gradient(grad, "sum", ctx.group)
        if ctx.grad_scale not in (0.0, 1.0):
            grad = grad * ctx.grad_scale
        return grad, None, None, None


def copy_to_tp_region(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Identity forward, all-reduce sum backward: for inputs and replicated weights of a region."""
    return _AllReduceSum.apply(tensor, group, False, 1.0)


def reduce_from_tp_region(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """All-reduce sum forward, identity backward: for the outputs of a region."""
    return _AllReduceSum.apply(tensor, group, True, 0.0)


def all_reduce_forward_and_backward(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """All-reduce sum forward and backward: a sum that each rank uses for its own features."""
    return _AllReduceSum.apply(tensor, group, True, 1.0)


def identity_with_averaged_gradient(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Identity forward, mean of the gradients backward: for replicated weights outside of regions.

    Their gradients are equal but for rounding: kernels that each process tunes for itself may sum
    in different orders. The mean keeps the copies bit-identical.
    """
    return _AllReduceSum.apply(tensor, group, False, 1.0 / group.size())
