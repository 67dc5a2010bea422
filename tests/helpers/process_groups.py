"""Process groups of a single process: no rank but this one exists, and collectives copy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_process_group(*, rank: int, world_size: int) -> Iterator[None]:
    """Makes this process one rank of torch's fake backend, which communicates nothing."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fake_mesh(*sizes: int, rank: int = 0, names: tuple[str, ...] = ("tp",)) -> Iterator[DeviceMesh]:
    """A mesh on the CPU over a fake process group of as many ranks."""
    world_size = 1
    for size in sizes:
        world_size *= size
    with fake_process_group(rank=rank, world_size=world_size):
        yield init_device_mesh("cpu", sizes, mesh_dim_names=names)
