"""Evaluating a formula in blocks of queries changes neither values nor gradients."""

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.attention.query_blocks import (
    causally_masked_dot_products,
    fold_groups_into_fp32_batch,
    hidden_key_mask,
    map_query_blocks,
    softmax_weighted_sum,
    unfold_groups_from_batch,
)
from tests.helpers.gradients import assert_close, outputs_and_gradients, randn_each


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax_weighted_sum(causally_masked_dot_products(q, k), v)


@pytest.mark.parametrize("queries", [1, 7, 12])
@pytest.mark.parametrize("block", [1, 5, 12, None])
def test_blocks_give_the_values_and_gradients_of_one_evaluation(queries, block):
    tensors = randn_each((4, queries, 2, 8), (4, 12, 8), (4, 12, 6))

    def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return map_query_blocks(attention, [q], [k, v], block_size=block)

    assert_close(
        outputs_and_gradients(in_blocks, tensors), outputs_and_gradients(attention, tensors)
    )


def test_keys_out_of_sight_of_a_window_are_left_out():
    seen = []

    def formula(q: Tensor, k: Tensor) -> Tensor:
        seen.append(k.shape[1])
        return q * 0 + k.sum(1)[:, None, None]

    map_query_blocks(
        formula, [torch.ones(1, 12, 1, 4)], [torch.ones(1, 12, 4)], left_window=2, block_size=4
    )
    # the first block has no earlier keys; later ones see two before their first query
    assert seen == [4, 6, 6]


def test_unfolding_groups_is_the_inverse_of_folding_them():
    (x,) = randn_each((2, 5, 6, 3))
    folded = fold_groups_into_fp32_batch(x, 2)
    assert folded.shape == (4, 5, 3, 3)
    assert torch.equal(unfold_groups_from_batch(folded, 2), x)


def test_a_key_is_hidden_after_the_query_and_before_its_window():
    # two queries at positions 2 and 3 of four keys
    assert hidden_key_mask(2, 4, torch.device("cpu"))[:, 0].tolist() == [
        [False, False, False, True],
        [False, False, False, False],
    ]
    assert hidden_key_mask(2, 4, torch.device("cpu"), left_window=1)[:, 0].tolist() == [
        [True, False, False, True],
        [True, True, False, False],
    ]
