"""Parameters that are DTensors in tables and plain tensors to their layer."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from flame_accel.parallel.tensor.dtensor_parameters import (
    differentiable_shard_or_raise_if_fsdp_sharded,
    make_attribute_read_local_tensor,
    shard_parameter,
    tp_shard_start_and_length,
)
from tests.helpers.process_groups import fake_mesh

CPU = torch.device("cpu")


@pytest.fixture
def mesh():
    """That of the last of three TP ranks."""
    with fake_mesh(3, rank=2) as mesh:
        yield mesh


def numbered_parameter() -> nn.Parameter:
    return nn.Parameter(torch.arange(10.0).view(5, 2))


def test_a_shard_has_the_rows_of_its_rank_and_the_full_shape(mesh):
    assert tp_shard_start_and_length(5, mesh) == (4, 1)
    sharded = shard_parameter(numbered_parameter(), mesh, 0, CPU)
    assert isinstance(sharded, DTensor)
    assert sharded.shape == (5, 2)
    assert differentiable_shard_or_raise_if_fsdp_sharded(sharded).tolist() == [[8, 9]]


def test_a_replicated_parameter_is_a_copy_of_all_rows(mesh):
    parameter = numbered_parameter()
    replicated = shard_parameter(parameter, mesh, None, CPU)
    assert torch.equal(differentiable_shard_or_raise_if_fsdp_sharded(replicated), parameter)
    with torch.no_grad():
        parameter.zero_()
    assert differentiable_shard_or_raise_if_fsdp_sharded(replicated).sum() == 45


def test_attributes_of_a_parameter_are_kept(mesh):
    parameter: Any = numbered_parameter().requires_grad_(False)
    parameter._no_weight_decay = True
    sharded: Any = shard_parameter(parameter, mesh, 0, CPU)
    assert sharded._no_weight_decay is True
    assert not sharded.requires_grad


def test_a_layer_reads_the_transformed_local_tensor_and_tables_have_the_dtensor(mesh):
    layer = nn.Linear(2, 5, bias=False)
    layer._parameters["weight"] = shard_parameter(layer.weight, mesh, 0, CPU)
    make_attribute_read_local_tensor(layer, "weight", lambda local: 2 * local)
    table = dict(layer.named_parameters())["weight"]
    assert isinstance(table, DTensor)
    assert not isinstance(layer.weight, DTensor)
    assert torch.equal(layer.weight, 2 * table.to_local())
    layer.weight.sum().backward()
    assert isinstance(table.grad, DTensor)
    assert table.grad.to_local().tolist() == [[2, 2]]


def test_a_parameter_that_fsdp2_has_sharded_as_well_is_not_read():
    with fake_mesh(2, 2, names=("dp_shard", "tp")) as mesh:
        weight = DTensor.from_local(torch.ones(2, 2), mesh, [Shard(0), Replicate()])
        with pytest.raises(RuntimeError, match="FSDP2 has not gathered"):
            differentiable_shard_or_raise_if_fsdp_sharded(weight)
        layer = nn.Linear(2, 4, bias=False)
        layer._parameters["weight"] = nn.Parameter(weight)
        make_attribute_read_local_tensor(layer, "weight", lambda local: local)
        assert isinstance(layer.weight, DTensor)
