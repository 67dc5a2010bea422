"""Keeps autocast away from arithmetic that chooses its own precision."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that runs with autocast off on the device of its first tensor."""

    @functools.wraps(function)
    def run_without_autocast(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        device = next(tensors).device.type
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run_without_autocast
