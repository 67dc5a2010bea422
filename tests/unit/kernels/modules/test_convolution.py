"""The short convolution, whole, packed and token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.modules import (
    convolution,
)
from tests.helpers.gradients import assert_same_results, randn_each

LENGTHS = (1, 9, 2, 12, 1)


CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0)


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    width = weight.shape[1]
    whole = torch.cat((state, x.mT), -1)
    y = F.conv1d(whole[..., 1:], weight.unsqueeze(1), bias, groups=weight.shape[0])
    return F.silu(y).mT, whole[..., -width:]


@pytest.mark.parametrize("tokens", [1, 2, 3, 20])
def test_convolution_equals_reference(tokens):
    tensors = randn_each((2, tokens, 6), (6, 4), (6,), (2, 6, 4))
    options = {"activation": "silu", "output_final_state": True}
    assert_same_results(
        lambda x, w, b, s: convolution.causal_conv1d(x, w, b, initial_state=s, **options),
        # the oldest input of a state is not in reach of the filter
        conv_reference,
        tensors,
    )


def test_convolution_starts_at_zero_and_adds_the_residual_last():
    x, weight = randn_each((2, 9, 6), (6, 4))
    zeros = torch.zeros(2, 6, 4)
    assert_same_results(
        lambda x, w: convolution.causal_conv1d(x, w, residual=x, activation="silu")[0],
        lambda x, w: conv_reference(x, w, torch.zeros(6), zeros)[0] + x,
        [x, weight],
    )


@pytest.mark.parametrize("with_state", [False, True])
def test_convolution_of_packed_documents_equals_separate_ones(with_state):
    x, weight, bias, state = randn_each((1, sum(LENGTHS), 6), (6, 4), (6,), (len(LENGTHS), 6, 4))
    options = {"activation": "swish", "output_final_state": True}
    tensors = [x, weight, bias, *([state] if with_state else [])]

    def separate(x: Tensor, w: Tensor, b: Tensor, *state: Tensor) -> tuple[Tensor, Tensor]:
        states = state[0].split(1) if state else [None] * len(LENGTHS)
        parts = [
            convolution.causal_conv1d(part, w, b, initial_state=s, **options)
            for part, s in zip(x.split(LENGTHS, 1), states, strict=True)
        ]
        return torch.cat([y for y, _ in parts], 1), torch.cat([s for _, s in parts])

    assert_same_results(
        lambda x, w, b, *s: convolution.causal_conv1d(
            x, w, b, initial_state=s[0] if s else None, cu_seqlens=CU_SEQLENS, **options
        ),
        separate,
        tensors,
    )


@pytest.mark.parametrize("shape", [(3, 1, 6), (1, 3, 6), (3, 6)], ids=str)
def test_convolution_steps_equal_the_whole(shape):
    x, weight, bias = randn_each((3, 9, 6), (6, 4), (6,))
    expected, final = convolution.causal_conv1d(
        x, weight, bias, residual=x, activation="silu", output_final_state=True
    )
    cache = torch.zeros(3, 6, 4)
    for t in range(9):
        token = x[:, t].reshape(shape)
        y, returned = convolution.causal_conv1d_update(
            token, cache, residual=token, weight=weight, bias=bias, activation="silu"
        )
        assert y.shape == shape
        assert torch.allclose(y.reshape(3, 6), expected[:, t], atol=1e-6)
    assert returned is cache
    assert torch.equal(cache, final)
