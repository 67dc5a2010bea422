"""What one rank holds of a sharded tensor, of all kinds of sharding."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from flame_accel.parallel.sharded_tensors import (
    detached_shard_or_tensor_itself,
    full_shape,
    local_gradient,
    num_ranks_of_run_with_copy,
    reduce_partial,
    shard_start_and_length,
    sharded_mesh_dims,
)
from tests.helpers.process_groups import fake_mesh


@pytest.fixture
def mesh():
    with fake_mesh(2, 3, names=("dp_shard", "tp")) as mesh:
        yield mesh


@given(size=st.integers(1, 50), num_shards=st.integers(1, 12))
def test_shards_are_cut_as_by_torch_chunk(size, num_shards):
    elements = torch.arange(size)
    chunks = [chunk.tolist() for chunk in elements.chunk(num_shards)]
    chunks += [[]] * (num_shards - len(chunks))
    ranges = [shard_start_and_length(size, num_shards, index) for index in range(num_shards)]
    assert [elements.narrow(0, *part).tolist() for part in ranges] == chunks


def test_a_plain_tensor_is_its_own_local_tensor():
    tensor = torch.ones(3)
    assert detached_shard_or_tensor_itself(tensor) is tensor
    assert sharded_mesh_dims(tensor) == []
    assert reduce_partial(tensor) is tensor
    assert num_ranks_of_run_with_copy(tensor) == 1


@pytest.mark.parametrize(
    ("placements", "dims", "copies"),
    [
        ([Shard(0), Shard(1)], [0, 1], 1),
        ([Shard(0), Replicate()], [0], 3),
        ([Replicate(), Shard(0)], [1], 2),
        ([Replicate(), Replicate()], [], 6),
    ],
)
def test_sharded_dimensions_and_copies_of_a_dtensor(mesh, placements, dims, copies):
    tensor = DTensor.from_local(torch.ones(2, 2), mesh, placements, run_check=False)
    assert sharded_mesh_dims(tensor) == dims
    assert num_ranks_of_run_with_copy(tensor) == copies


def test_a_plain_tensor_of_a_run_is_copied_on_every_rank(mesh):
    assert num_ranks_of_run_with_copy(torch.ones(2)) == 6


def test_the_local_tensor_shares_memory_and_has_no_history(mesh):
    own = torch.zeros(2)
    parameter = nn.Parameter(DTensor.from_local(own, mesh, [Replicate(), Replicate()]))
    local = detached_shard_or_tensor_itself(parameter)
    assert local.grad_fn is None
    local.add_(1)
    assert own.tolist() == [1, 1]


def test_partial_sums_are_reduced_and_shards_stay(mesh):
    tensor = DTensor.from_local(torch.ones(2), mesh, [Shard(0), Partial()], run_check=False)
    assert reduce_partial(tensor).placements == (Shard(0), Replicate())


def test_a_gradient_takes_the_placements_of_its_parameter(mesh):
    weight = DTensor.from_local(torch.ones(2), mesh, [Shard(0), Replicate()], run_check=False)
    parameter = nn.Parameter(weight)
    parameter.grad = DTensor.from_local(
        torch.full((2,), 3.0), mesh, [Shard(0), Partial()], run_check=False
    )
    assert local_gradient(parameter).tolist() == [3, 3]


def test_the_full_shape_is_that_before_sharding(mesh):
    sharded = DTensor.from_local(torch.ones(2, 2), mesh, [Shard(0), Shard(1)], run_check=False)
    assert full_shape(sharded) == (4, 6)
    emptied_by_zero_3: Any = SimpleNamespace(shape=torch.Size([0]), ds_shape=torch.Size([4, 6]))
    assert full_shape(emptied_by_zero_3) == (4, 6)
