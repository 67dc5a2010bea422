"""The gradient of an embedding: rows of tokens that occur often, once and not at all."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.fused_kernels import DEVICE, draw


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_the_gradient_of_an_embedding(fused, padding_idx):
    # some tokens more often than a program adds at a time, some not at all
    ids = torch.randint(40, (2, 150), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids[0, :70], ids[1, :50], ids[:, 80:120] = 7, 8, 39
    weight = draw(60, 200, dtype=torch.float32, seed=1)
    cotangent = draw(2, 150, 200, dtype=torch.float32, seed=2).detach()
    module = fused("embedding")
    y = module._Embedding.apply(weight, ids, padding_idx)
    assert torch.equal(y, F.embedding(ids, weight))
    [found] = torch.autograd.grad(y, weight, cotangent)
    wide = weight.detach().double().requires_grad_()
    F.embedding(ids, wide, padding_idx).backward(cotangent.double())
    assert wide.grad is not None
    assert torch.allclose(found.double(), wide.grad, atol=1e-5)
    if padding_idx is not None:
        assert not found[padding_idx].any()
