"""Changes to one module that leave its class and its siblings alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from flame_accel.parallel.tensor.instance_patching import (
    replace_forward_globals,
    subclass_instance_in_place,
)


class Rooted(nn.Module):
    """Calls a global of this module."""

    def forward(self, number: Tensor, *, scale: float = 2.0) -> float:
        return scale * root(number)


def root(number: Tensor) -> float:
    return math.sqrt(number)


def test_only_the_instance_gets_the_members_and_its_class_keeps_its_name():
    patched, sibling = nn.Linear(2, 2), nn.Linear(2, 2)
    subclass_instance_in_place(patched, {"extra_repr": lambda self: "patched"})
    assert repr(patched) == "Linear(patched)"
    assert "patched" not in repr(sibling)
    assert isinstance(patched, nn.Linear)
    assert type(patched).__name__ == "Linear"


def test_only_the_instance_calls_the_other_function():
    patched, sibling = Rooted(), Rooted()
    replace_forward_globals(patched, {"root": lambda number: 10.0})
    number = torch.tensor(9.0)
    assert patched(number) == 20
    assert patched(number, scale=1.0) == 10
    assert sibling(number) == 6


def test_a_global_that_the_module_lacks_is_noticed():
    with pytest.raises(RuntimeError, match=r"Rooted.forward has no no_such_function"):
        replace_forward_globals(Rooted(), {"no_such_function": root})
