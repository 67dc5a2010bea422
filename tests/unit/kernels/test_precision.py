"""Arithmetic that chooses its own precision runs without autocast."""

import torch

from flame_accel.kernels.precision import without_autocast


def test_autocast_is_off_inside_and_restored_after():
    seen = []

    @without_autocast
    def multiply(x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return x @ y

    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert multiply(x, y=x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert seen == [False]
