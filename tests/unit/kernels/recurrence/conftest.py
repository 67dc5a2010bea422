"""Fixture of the tests of delta rules."""

import pytest
import torch
from torch import Tensor

from tests.helpers.recurrence import B, H, K, T, V, unit


@pytest.fixture
def qkv() -> list[Tensor]:
    """q, k, v, strengths, initial state."""
    torch.manual_seed(1)
    q, k, v = unit(B, T, H, K), unit(B, T, H, K), torch.randn(B, T, H, V)
    return [q, k, v, torch.rand(B, T, H), torch.randn(B, H, K, V)]
