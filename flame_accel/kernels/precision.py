"""Keeps autocast away from arithmetic that chooses its own precision."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs with autocast off on the device of its first tensor."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        device = next(tensors).device.type
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run
