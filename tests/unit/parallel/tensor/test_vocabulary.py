"""Embedding and head with a sharded weight, rank by rank."""

import torch
from torch import nn

from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel.tensor.dtensor_parameters import shard_parameter
from flame_accel.parallel.tensor.loss import VocabParallelLoss
from flame_accel.parallel.tensor.vocabulary import (
    GatheredHeadLoss,
    gather_full_weight,
    replace_forward_of_sharded_embedding,
    replace_head_forward_and_loss,
)
from tests.helpers.process_groups import fake_mesh

CPU = torch.device("cpu")


def test_the_lookups_of_all_ranks_add_up_to_the_full_one():
    """Five ids over four ranks: the third has one, the last none."""
    full = nn.Embedding(5, 3, padding_idx=4)
    ids = torch.tensor([[0, 4, 2], [3, 1, 1]])
    found = []
    for rank in range(4):
        with fake_mesh(4, rank=rank) as mesh, torch.no_grad():
            embedding = nn.Embedding(5, 3, padding_idx=4)
            embedding._parameters["weight"] = shard_parameter(full.weight, mesh, 0, CPU)
            replace_forward_of_sharded_embedding(embedding, mesh)
            # torch's fake backend sums nothing
            found.append(embedding(ids))
    torch.testing.assert_close(sum(found), full(ids))


def test_a_gathered_weight_has_the_full_shape():
    with fake_mesh(2) as mesh:
        weight = shard_parameter(nn.Parameter(torch.ones(6, 2)), mesh, 0, CPU)
        assert gather_full_weight(weight).shape == (6, 2)


def test_the_criterion_of_a_model_follows_the_option():
    for loss_parallel, criterion in ((True, VocabParallelLoss), (False, GatheredHeadLoss)):
        model = instantiate_on_default_device(tiny_config("gla"))
        with fake_mesh(1) as mesh:
            head = model.get_output_embeddings()
            head._parameters["weight"] = shard_parameter(head.weight, mesh, 0, CPU)
            replace_head_forward_and_loss(model, mesh, loss_parallel=loss_parallel)
            assert type(model.criterion) is criterion
