"""Comparison of values and gradients of two functions on random inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def randn_each(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape) for shape in shapes]


def flatten(value: Any) -> list[Any]:
    """The leaves of nested tuples and lists."""
    return [y for x in value for y in flatten(x)] if isinstance(value, (tuple, list)) else [value]


def with_gradient_rounded_to_bf16(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a function in higher precision get the gradient that one in bf16 gets."""

    def call(*tensors: Tensor) -> Tensor:
        output = function(*tensors)
        output.register_hook(lambda gradient: gradient.bfloat16().to(gradient.dtype))
        return output

    return call


def outputs_and_gradients(
    function: Callable[..., Any], tensors: Sequence[Tensor | None], *, unused_inputs: bool = False
) -> list[Tensor]:
    """All outputs, and the gradients of a random projection of them with respect to all tensors.

    Args:
        function: Of the tensors; returns a tensor or nested tuples of tensors and Nones, which are
            dropped.
        tensors: Its inputs, or Nones, which have no gradients.
        unused_inputs: Whether an input may have no gradient; it then is zero.
    """
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    outputs = [x for x in flatten(function(*leaves)) if x is not None]
    torch.manual_seed(0)
    projected = sum((x * torch.randn(x.shape).to(x)).sum() for x in outputs)
    inputs = [x for x in leaves if x is not None]
    grads = torch.autograd.grad(projected, inputs, materialize_grads=unused_inputs)
    return [*(x.detach() for x in outputs), *grads]


def assert_close(
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: float = 1e-4,
    absolute: float = 0.0,
) -> None:
    """Norm of each difference at most `tolerance` times the norm of the expected, + `absolute`."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert a.isfinite().all(), f"tensor {index}"
        assert (a - e).norm() <= tolerance * e.norm() + absolute, f"tensor {index}"


def assert_same_results(
    actual: Callable[..., Any],
    expected: Callable[..., Any],
    tensors: Sequence[Tensor],
    tolerance: float = 1e-5,
) -> None:
    """Both functions give the same values and, through a random projection, the same gradients."""
    assert_close(
        outputs_and_gradients(actual, tensors), outputs_and_gradients(expected, tensors), tolerance
    )
