"""Copies of tensors in host memory that is allocated once, and used again by every snapshot.

For a GPU the memory can be page-locked, so that copies run at the speed of its bus and the host
does not wait for each. Whether there is enough of it on each machine is decided here too; who
copies what and when, in `saver`.
"""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from flame_accel.observe import get_logger
from flame_accel.parallel import HostGroup

CHUNK_BYTES = 1 << 28
ALIGNMENT_BYTES = 64
PORTABLE = 1
"""cudaHostRegisterPortable of the CUDA runtime."""
CGROUP = Path("/sys/fs/cgroup")
SHARE_OF_AVAILABLE_MEMORY = 0.7
"""Copies fit if they take at most this fraction of the host memory that is available."""


class _Chunk(NamedTuple):
    """A part of the memory."""

    memory: Tensor
    """Bytes."""
    is_locked: bool

    def view(self, offset: int, like: Tensor) -> Tensor:
        """A tensor with a storage of its own at `offset`: writers take shared ones for tied."""
        flat = torch.frombuffer(
            self.memory.numpy(), dtype=like.dtype, count=like.numel(), offset=offset
        )
        return flat.view(like.shape)


class HostCopies:
    """Copies tensors into memory that is kept; the copies of one snapshot overwrite the last one's.

    Args:
        page_locked: Whether to page-lock the memory, for copies from a GPU.
    """

    def __init__(self, *, page_locked: bool) -> None:
        self._page_locked = page_locked
        self._chunks: list[_Chunk] = []
        self._current, self._offset = 0, 0

    def begin_snapshot(self) -> None:
        """Gives up the copies made so far. Nobody may use them any more."""
        self._current, self._offset = 0, 0

    def begin_copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy on the CPU. Its contents are there after `wait_for_copies`.

        The tensor may be changed or freed by what is launched on its device later.
        """
        tensor = tensor.detach()
        if tensor.numel() == 0:
            return tensor.cpu()
        return self._place(tensor).copy_(tensor, non_blocking=self._page_locked)

    def wait_for_copies(self) -> None:
        """Waits for the copies that were begun."""
        if self._page_locked:
            torch.cuda.current_stream().synchronize()

    def free(self) -> None:
        """Gives the memory back; nobody may use a copy any more."""
        for chunk in self._chunks:
            if chunk.is_locked:
                _cuda_runtime().cudaHostUnregister(chunk.memory.data_ptr())
        self._chunks.clear()
        self.begin_snapshot()

    def _place(self, tensor: Tensor) -> Tensor:
        """Memory for a tensor: in the order of the first snapshot, the same in each."""
        while self._current < len(self._chunks):
            chunk, offset = self._chunks[self._current], self._offset
            if offset + tensor.nbytes <= chunk.memory.nbytes:
                self._offset = -(-(offset + tensor.nbytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                return chunk.view(offset, tensor)
            self._current, self._offset = self._current + 1, 0
        self._chunks.append(self._allocate(max(CHUNK_BYTES, tensor.nbytes)))
        return self._place(tensor)

    def _allocate(self, size: int) -> _Chunk:
        memory = torch.empty(size, dtype=torch.uint8)
        if not self._page_locked:
            return _Chunk(memory, is_locked=False)
        # pages that are there already are locked more quickly
        memory.zero_()
        # torch's own allocator of such memory rounds up to powers of two
        code = int(_cuda_runtime().cudaHostRegister(memory.data_ptr(), size, PORTABLE))
        if code:
            # copies to it are slower
            get_logger().warning("host memory cannot be page-locked (CUDA error %d)", code)
            _take_cuda_error()
            return _Chunk(memory, is_locked=False)
        return _Chunk(memory, is_locked=True)


def _cuda_runtime() -> Any:
    """Torch's binding of the CUDA runtime; None without CUDA, which is not asked then."""
    return torch.cuda.cudart()


def _take_cuda_error() -> None:
    """The runtime tells an error once more, to the next who launches a kernel: not to training."""
    with suppress(RuntimeError):
        torch.zeros((), device="cuda")


class _HostMemory(NamedTuple):
    """What a rank says about its machine."""

    host: str
    available_bytes: int
    needed_bytes: int
    """By the copy of this rank."""


def why_copies_do_not_fit(ranks: HostGroup, needed_bytes: int) -> str | None:
    """The reason why a machine has too little memory for the copies of its ranks; None if none has.

    Every rank must call it, and all get the same answer.

    Args:
        ranks: All ranks.
        needed_bytes: Size of the copy of this rank.
    """
    own = _HostMemory(socket.gethostname(), available_host_bytes(), needed_bytes)
    memory_of_ranks = ranks.gather_objects(own)
    for host in sorted({memory.host for memory in memory_of_ranks}):
        on_host = [memory for memory in memory_of_ranks if memory.host == host]
        needed = sum(memory.needed_bytes for memory in on_host)
        available = min(memory.available_bytes for memory in on_host)
        if needed > SHARE_OF_AVAILABLE_MEMORY * available:
            return (
                f"a copy of {needed / 2**30:.2f} GiB is too large for {host}, where "
                f"{available / 2**30:.2f} GiB are available; checkpoint.async_mode = async "
                "makes it all the same"
            )
    return None


def available_host_bytes() -> int:
    """Host memory that this process could use: of the machine, and of its control group (v2)."""
    available = psutil.virtual_memory().available
    limit, statistics = CGROUP / "memory.max", CGROUP / "memory.stat"
    try:
        limit_bytes = int(limit.read_text())
        used = dict(line.split() for line in statistics.read_text().splitlines())
    except (OSError, ValueError):
        # no control group, or one without a limit ("max")
        return available
    return min(available, limit_bytes - int(used["anon"]) - int(used.get("shmem", 0)))
