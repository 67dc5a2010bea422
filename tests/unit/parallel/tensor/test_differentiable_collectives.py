"""All-reduces inside a model: what is summed forward, and what backward."""

import pytest
import torch
import torch.distributed as dist

from flame_accel.parallel.tensor import differentiable_collectives
from flame_accel.parallel.tensor.differentiable_collectives import (
    all_reduce_forward_and_backward,
    all_reduce_without_gradient,
    copy_to_tp_region,
    identity_with_averaged_gradient,
    reduce_from_tp_region,
)
from tests.helpers.process_groups import fake_process_group

RANKS = 4


@pytest.fixture
def group(monkeypatch):
    """A TP group whose ranks all hold the same tensor, so that a sum is a product."""
    monkeypatch.setattr(
        differentiable_collectives,
        "all_reduce_without_gradient",
        lambda tensor, operation, group: RANKS * tensor,
    )
    with fake_process_group(rank=0, world_size=RANKS):
        yield dist.group.WORLD


@pytest.mark.parametrize(
    ("function", "output", "gradient"),
    [
        (copy_to_tp_region, 3.0, 5.0 * RANKS),
        (reduce_from_tp_region, 3.0 * RANKS, 5.0),
        (all_reduce_forward_and_backward, 3.0 * RANKS, 5.0 * RANKS),
        (identity_with_averaged_gradient, 3.0, 5.0),
    ],
)
def test_each_function_sums_where_its_name_says(group, function, output, gradient):
    tensor = torch.tensor([3.0], requires_grad=True)
    result = function(tensor, group)
    result.backward(torch.tensor([5.0]))
    assert result.item() == output
    assert tensor.grad is not None and tensor.grad.item() == gradient


def test_an_all_reduce_returns_a_new_tensor():
    with fake_process_group(rank=0, world_size=2):
        tensor = torch.ones(2, 3).T
        reduced = all_reduce_without_gradient(tensor, "max", dist.group.WORLD)
        assert reduced.shape == (3, 2)
        assert reduced.data_ptr() != tensor.data_ptr()
