"""Stick-breaking attention at logits that saturate: gradients are those of double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.attention.stickbreaking_attention import parallel_stickbreaking_attn
from tests.helpers.gradients import assert_close, outputs_and_gradients

HEADS, TOKENS, WIDTH = 2, 64, 16


def reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """For one query after the other, in double: a key takes its share of what later ones left."""
    q, k, v = (x.double() for x in (q, k, v))
    outputs, remainders = [], []
    for t in range(q.shape[1]):
        z = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, :t])
        left = F.pad(F.logsigmoid(-z).flip(-1).cumsum(-1), (1, 0)).flip(-1)
        shares = (F.logsigmoid(z) + left[..., 1:]).exp()
        outputs.append(torch.einsum("bhs,bshd->bhd", shares, v[:, :t]))
        remainders.append(left[..., 0].exp())
    return torch.stack(outputs, 1), torch.stack(remainders, 1)


@pytest.mark.parametrize("logit", [-30.0, 0.0, 5.0, 10.0, 20.0, 30.0])
def test_gradients_at_saturated_logits(logit: float):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, TOKENS, HEADS, WIDTH).unbind()
    one = torch.ones(1, TOKENS, HEADS, 1)
    tensors = [torch.cat((0.1 * q, one), -1), torch.cat((k, logit * one), -1), v]

    def ours(*x: Tensor) -> tuple[Tensor, Tensor]:
        return parallel_stickbreaking_attn(*x, scale=1.0)

    expected = outputs_and_gradients(reference, [x.double() for x in tensors])
    assert_close([x.double() for x in outputs_and_gradients(ours, tensors)], expected, 1e-5)
