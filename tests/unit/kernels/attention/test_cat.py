"""Attention under a mask given as a function."""

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from flame_accel.kernels.attention import (
    cat,
)
from tests.helpers.attention_variants import assert_same


def test_a_mask_given_as_a_function_equals_flex_attention():
    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return ((j % 5 == 0) | (i // 5 == j // 5)) & (i >= j)

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 33, 16).unbind()
    mask = cat.create_block_mask(mask_mod, None, None, 33, 33)
    actual = cat.flex_attention(q, k, v, block_mask=mask)
    block_mask = torch_flex.create_block_mask(mask_mod, None, None, 33, 33, device="cpu")
    assert_same([actual], [torch_flex.flex_attention(q, k, v, block_mask=block_mask)])
