"""All-reduces inside a model: what is summed forward, and what backward."""

import pytest
import torch
import torch.distributed as dist

from flame_accel.parallel.tensor import differentiable_collectives
from flame_accel.parallel.tensor.differentiable_collectives import (
    all_reduce_in_tp_region,
    all_reduce_tp,
    average_gradient_over_tp,
    copy_to_tp_region,
    reduce_from_tp_region,
)
from tests.helpers.process_groups import fake_process_group

RANKS = 4


@pytest.fixture
def group(monkeypatch):
    """A TP group whose ranks all hold the same tensor, so that a sum is a product."""
    monkeypatch.setattr(
        differentiable_collectives, "all_reduce_tp", lambda tensor, operation, group: RANKS * tensor
    )
    with fake_process_group(rank=0, world_size=RANKS):
        yield dist.group.WORLD


@pytest.mark.parametrize(
    ("function", "output", "gradient"),
    [
        (copy_to_tp_region, 3.0, 5.0 * RANKS),
        (reduce_from_tp_region, 3.0 * RANKS, 5.0),
        (all_reduce_in_tp_region, 3.0 * RANKS, 5.0 * RANKS),
        (average_gradient_over_tp, 3.0, 5.0),
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
        reduced = all_reduce_tp(tensor, "max", dist.group.WORLD)
        assert reduced.shape == (3, 2)
        assert reduced.data_ptr() != tensor.data_ptr()
