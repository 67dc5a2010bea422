"""Mixture of block attention sees its own chunk and as many of the best earlier ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.attention.moba import parallel_moba
from tests.helpers.gradients import assert_close

TOKENS, HEADS, WIDTH, CHUNK = 40, 2, 8, 8


def draw() -> list[Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(3, 1, TOKENS, HEADS, WIDTH).unbind())


def run(tensors: list[Tensor], top_k: int) -> Tensor:
    boundaries = torch.tensor([0, TOKENS], dtype=torch.int32)
    return parallel_moba(*tensors, boundaries, CHUNK, top_k)


def masked(tensors: list[Tensor], sees: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in tensors)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees).transpose(1, 2)


def test_with_all_chunks_it_is_softmax_attention():
    tensors = draw()
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    assert_close([run(tensors, TOKENS // CHUNK)], [masked(tensors, causal)])


@pytest.mark.parametrize("best", [0, 2])
def test_queries_see_the_one_earlier_chunk_whose_mean_key_fits_best(best):
    q, k, v = draw()
    q[..., 0], k[..., 0] = 50.0, 0.0
    k[:, best * CHUNK : (best + 1) * CHUNK, :, 0] = 1.0
    token = torch.arange(TOKENS)
    same = token[:, None] // CHUNK == token // CHUNK
    last = token[:, None] // CHUNK == TOKENS // CHUNK - 1
    sees = (same | (token // CHUNK == best) & last) & (token <= token[:, None])
    found, expected = run([q, k, v], 2), masked([q, k, v], sees)
    assert_close([found[:, -CHUNK:]], [expected[:, -CHUNK:]])
