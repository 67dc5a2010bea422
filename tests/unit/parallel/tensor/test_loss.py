"""The vocabulary-parallel loss on one rank; on two ranks it is compared in `test_apply`."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from flame_accel.parallel.tensor import loss
from flame_accel.parallel.tensor.dtensor_parameters import shard_parameter
from flame_accel.parallel.tensor.loss import VocabParallelLoss
from tests.helpers.process_groups import fake_mesh


@pytest.mark.parametrize("chunk_logits", [1, 2 * 11, 2**25])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradients_are_those_of_torch_whatever_the_chunks(
    monkeypatch, chunk_logits, reduction
):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk_logits)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    weight = nn.Parameter(torch.randn(11, 7, generator=generator))
    labels = torch.randint(11, (2, 5), generator=generator)
    labels[0, :3] = -100
    expected = functional.cross_entropy(
        (hidden @ weight.T).flatten(0, -2), labels.flatten(), reduction=reduction
    )
    expected_gradients = torch.autograd.grad(expected, [hidden, weight])
    with fake_mesh(1) as mesh:
        sharded = shard_parameter(weight, mesh, 0, torch.device("cpu"))
        criterion = VocabParallelLoss(mesh)
        criterion.reduction = reduction
        found = criterion(hidden, labels, sharded)
        found.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(hidden.grad, expected_gradients[0])
        torch.testing.assert_close(sharded.grad.full_tensor(), expected_gradients[1])


def test_positions_without_targets_have_no_gradient():
    hidden = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([1, -100, 0, -100])
    with fake_mesh(1) as mesh:
        weight = shard_parameter(nn.Parameter(torch.randn(5, 3)), mesh, 0, torch.device("cpu"))
        VocabParallelLoss(mesh)(hidden, labels, weight).backward()
    assert hidden.grad is not None
    assert (hidden.grad[labels == -100] == 0).all()
    assert (hidden.grad[labels != -100] != 0).all()
