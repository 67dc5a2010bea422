"""Matrix products and softmax under fla's names equal PyTorch's, in fla's dtypes."""

import pytest
import torch
import torch.nn.functional as F
from fla.ops.utils import addmm, logsumexp_fwd, matmul, sinkhorn, softmax_bwd, softmax_fwd
from fla.ops.utils.sinkhorn.naive import naive_sinkhorn

from flame_accel.config.errors import UserError
from tests.helpers.gradients import assert_close, assert_same_results


def test_products_and_their_activations():
    a, b, x = torch.randn(2, 5, 7), torch.randn(7, 3), torch.randn(3)
    assert_close([matmul(a, b), matmul(a[0], b)], [a @ b, a[0] @ b], 1e-6)
    assert_close([matmul(a, b, "leaky_relu")], [F.leaky_relu(a @ b)], 1e-6)
    assert_close([addmm(x, a, b), addmm(x, a, b, 2.0, 0.5)], [x + a @ b, 0.5 * x + 2 * a @ b], 1e-6)
    assert matmul(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(UserError, match="gelu"):
        matmul(a, b, "gelu")


def test_softmax_and_its_gradient():
    x, dp = torch.randn(2, 4, 9).unbind()
    x.requires_grad_()
    p = x.softmax(-1)
    (expected,) = torch.autograd.grad(p, x, dp)
    assert_close([softmax_fwd(x), softmax_bwd(p, dp)], [p, expected], 1e-6)
    assert softmax_fwd(x.bfloat16(), dtype=None).dtype == torch.bfloat16
    assert_close([logsumexp_fwd(x, scale=3.0)], [(3 * x).logsumexp(-1)], 1e-6)
    assert logsumexp_fwd(x, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_rows_and_columns_add_up_to_one():
    logits = 5 * torch.randn(3, 4, 4)
    assert_same_results(sinkhorn, naive_sinkhorn, [logits])
    assert torch.allclose(sinkhorn(logits, 200).sum(-2), torch.ones(3, 4), atol=1e-2)
