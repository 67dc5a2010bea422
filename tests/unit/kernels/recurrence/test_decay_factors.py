"""Decays within a chunk equal their definition, and overflow nowhere."""

import torch

from flame_accel.kernels.recurrence.decay_factors import compute_pairwise_and_boundary_decays
from tests.helpers.gradients import assert_close


def test_factors_equal_products_of_decays():
    torch.manual_seed(0)
    g = -2 * torch.rand(3, 2, 16)
    factors, decays = compute_pairwise_and_boundary_decays(g), g.double().exp()
    for i in range(16):
        for j in range(16):
            product = decays[..., j + 1 : i + 1].prod(-1).float() * (j <= i)
            assert_close([factors.between_tokens[..., i, j]], [product], 1e-6)
    assert_close([factors.from_start], [decays.cumprod(-1).float()], 1e-6)
    to_end = decays.flip(-1).cumprod(-1).flip(-1) / decays
    assert_close([factors.to_end], [to_end.float()], 1e-6)


def test_values_and_gradients_are_finite_at_any_strength():
    g = torch.tensor([[0.0, -1e4, -3.0, -1e30, 0.0, -0.1]]).requires_grad_()
    factors = compute_pairwise_and_boundary_decays(g)
    sum(x.sum() for x in factors).backward()
    assert all(x.isfinite().all() and (x <= 1).all() for x in factors)
    assert g.grad is not None
    assert g.grad.isfinite().all()
    assert factors.between_tokens[0, 2, 0] < 1e-40
    torch.testing.assert_close(factors.between_tokens[0, 5, 4], torch.tensor(-0.1).exp())
