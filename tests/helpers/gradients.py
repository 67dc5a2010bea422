"""Comparison of values and gradients of two functions on random inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-5


def assert_same_results(
    actual: Callable[..., Any], expected: Callable[..., Any], tensors: Sequence[Tensor]
) -> None:
    """Both functions give the same values and, through a random projection, the same gradients."""
    results = []
    for function in (actual, expected):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        values = function(*leaves)
        values = values if isinstance(values, tuple) else (values,)
        torch.manual_seed(0)
        projected = torch.stack([(x * torch.randn(x.shape)).sum() for x in values]).sum()
        results.append([*values, *torch.autograd.grad(projected, leaves)])
    for index, (a, e) in enumerate(zip(*results, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= TOLERANCE * e.norm(), f"tensor {index}"


def randn_each(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape) for shape in shapes]


def with_gradients(
    function: Callable[..., Tensor], tensors: list[Tensor], *, unused_inputs: bool = False
) -> list[Tensor]:
    """Output and the gradients of a random projection of it with respect to all tensors.

    Args:
        function: Of the tensors.
        tensors: Its inputs.
        unused_inputs: Whether an input may have no gradient; it then is zero.
    """
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    o = function(*leaves)
    torch.manual_seed(0)
    projected = (o * torch.randn(o.shape).to(o)).sum()
    grads = torch.autograd.grad(projected, leaves, materialize_grads=unused_inputs)
    return [o.detach(), *grads]


def assert_close(
    actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4, absolute: float = 0.0
) -> None:
    """Norm of each difference at most `tolerance` times the norm of the expected, + `absolute`."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * e.norm() + absolute, f"tensor {index}"
