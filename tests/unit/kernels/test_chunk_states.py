"""States between chunks: fla's kernels get what fla's own functions give them, to the last name."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fla.ops.common import chunk_h
from torch import Tensor

from flame_accel.kernels import chunk_states
from flame_accel.kernels.boundaries_on_host import remember_boundaries

DOCUMENTS = [0, 1, 65, 129, 200]
BLOCKS = {"BK": 16, "BV": 32}
CHANNELS, VALUES, HEADS = 48, 40, 3


class Recorder:
    """Stands in for a kernel, and keeps the grid and the arguments of each launch."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int], dict[str, Any]]] = []

    def __getitem__(self, grid: Callable[..., tuple[int]]) -> Callable[..., None]:
        return lambda **arguments: self.launches.append((grid(BLOCKS), arguments))


def draw(*shape: int) -> Tensor:
    return torch.randn(1, DOCUMENTS[-1], *shape)


OPTIONS = {
    "plain": {},
    "states asked for": {"state_v_first": True, "states_in_fp32": True, "split_size": 128},
    "decay per head": {"g": draw(HEADS)},
    "decay per channel": {"gk": draw(HEADS, CHANNELS), "gv": draw(HEADS, VALUES)},
    "one decay": {"g_gamma": torch.randn(HEADS)},
}


def same(x: Any, y: Any) -> bool:
    """Equal, or for new tensors of the same shape and dtype."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x is y or (x.shape == y.shape and x.dtype == y.dtype)
    return x == y


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("with_states", [False, True])
def test_kernels_are_launched_as_fla_launches_them(monkeypatch, options, direction, with_states):
    cu_seqlens = torch.tensor(DOCUMENTS, dtype=torch.int32)
    remember_boundaries(cu_seqlens, DOCUMENTS)
    k, v = draw(HEADS, CHANNELS).bfloat16(), draw(HEADS, VALUES).bfloat16()
    state = torch.zeros(len(DOCUMENTS) - 1, HEADS, CHANNELS, VALUES) if with_states else None
    forward = direction == "forward"
    if forward:
        arguments = {"k": k, "v": v, "h0": state, "output_final_state": with_states}
    else:
        # two queries for each key
        q, do = draw(2 * HEADS, CHANNELS).bfloat16(), draw(2 * HEADS, VALUES).bfloat16()
        arguments = {"q": q, "k": k, "v": v, "do": do, "h0": state, "dht": state, "scale": 0.5}
    name = "chunk_fwd_h" if forward else "chunk_bwd_dh"
    kernel = Recorder()
    monkeypatch.setattr(chunk_h, "chunk_fwd_kernel_h" if forward else "chunk_bwd_kernel_dh", kernel)
    theirs = inspect.unwrap(getattr(chunk_h, name))
    results = [
        function(**arguments, **options, cu_seqlens=cu_seqlens)
        for function in (theirs, getattr(chunk_states, name))
    ]
    assert all(same(*pair) for pair in zip(*results, strict=True))
    (grid, expected), (our_grid, found) = kernel.launches
    assert our_grid == grid and found.keys() == expected.keys()
    assert all(same(found[key], expected[key]) for key in expected)
