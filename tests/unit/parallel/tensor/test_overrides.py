"""Replacements of functions of fla on one rank, and which heads they take for theirs."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from flame_accel import kernels
from flame_accel.parallel.tensor.overrides import ShardedNormLinear, ShardedRetention
from tests.helpers.process_groups import fake_process_group


def test_norm_and_projection_are_those_of_torch_on_one_rank():
    x, norm_weight, weight = torch.randn(3, 8), torch.rand(8), torch.randn(5, 8)
    with fake_process_group(rank=0, world_size=1):
        found = ShardedNormLinear(group())(x, norm_weight, None, weight, None, eps=1e-5)
    expected = functional.linear(functional.rms_norm(x, (8,), norm_weight, eps=1e-5), weight)
    torch.testing.assert_close(found, expected)


def test_each_rank_uses_the_decays_of_its_own_heads(monkeypatch):
    kernels.install("torch")
    decays = []

    def record(q: Any, k: Any, v: Any, *, g_gamma: torch.Tensor, **options: Any) -> None:
        decays.extend(g_gamma.exp().tolist())

    import fla.ops.simple_gla

    monkeypatch.setattr(fla.ops.simple_gla, "chunk_simple_gla", record)
    heads = torch.zeros(1, 4, 2, 8)
    for rank in range(3):
        with fake_process_group(rank=rank, world_size=3):
            ShardedRetention(group())(heads, heads, heads)
    expected = [1 - 2.0 ** (-5 - head) for head in range(6)]
    torch.testing.assert_close(decays, expected, rtol=0, atol=1e-6)


def group() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world
