"""Rotary position embeddings restart with every document."""

import pytest
import torch
from fla.modules.rotary.ops import rotary_embedding_ref

from flame_accel.kernels.modules import (
    rotary,
)
from tests.helpers.gradients import assert_same_results, randn_each


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_equals_reference(interleaved):
    (x,) = randn_each((2, 7, 3, 10))
    angle = torch.arange(12)[:, None] / 10000 ** (torch.arange(4) / 4)
    cos, sin = angle.cos(), angle.sin()
    assert_same_results(
        lambda x: rotary.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=2),
        lambda x: rotary_embedding_ref(x, cos[2:9], sin[2:9], interleaved),
        [x],
    )
    offsets = torch.tensor([3, 0])
    y = rotary.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=offsets)
    expected = [
        rotary_embedding_ref(x[i : i + 1], cos[o : o + 7], sin[o : o + 7], interleaved)
        for i, o in enumerate(offsets.tolist())
    ]
    assert torch.allclose(y, torch.cat(expected), atol=1e-6)


def test_rotary_restarts_with_every_document():
    (x,) = randn_each((1, 7, 3, 8))
    angle = torch.arange(12)[:, None] / 10000 ** (torch.arange(4) / 4)
    cos, sin = angle.cos(), angle.sin()
    cu_seqlens, offsets = torch.tensor([0, 3, 7]), torch.tensor([-1, 2])
    y = rotary.rotary_embedding(x, cos, sin, seqlen_offsets=offsets, cu_seqlens=cu_seqlens)
    second = rotary.rotary_embedding(x[:, 3:], cos, sin, seqlen_offsets=2)
    assert torch.equal(y[:, 3:], second)
    # a token at position -1 is padding
    assert not y[0, 0].any()
    assert torch.equal(y[:, 1:3], rotary.rotary_embedding(x[:, 1:3], cos, sin))


@pytest.mark.parametrize("inplace", [False, True])
def test_documents_may_go_on_in_the_next_row(inplace):
    (x,) = randn_each((2, 6, 3, 8))
    angle = torch.arange(12)[:, None] / 10000 ** (torch.arange(4) / 4)
    tables = (angle.cos(), angle.sin())
    cu_seqlens = torch.tensor([0, 4, 9, 12])
    expected = rotary.rotary_embedding(x.view(1, 12, 3, 8), *tables, cu_seqlens=cu_seqlens)
    y = rotary.rotary_embedding(x, *tables, inplace=inplace, cu_seqlens=cu_seqlens)
    assert torch.equal(y, expected.view(x.shape)) and (y is x) == inplace
