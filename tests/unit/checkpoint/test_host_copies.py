"""Copies in host memory: apart from what they copy and from each other, in memory that is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_accel.checkpoint import host_copies
from flame_accel.checkpoint.host_copies import (
    HostCopies,
    available_host_bytes,
    why_copies_do_not_fit,
)
from tests.helpers.checkpoints import equal_tensors


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(3, 5),
        "transposed": torch.randn(4, 7).T,
        "bf16": torch.randn(9).bfloat16(),
        "step": torch.tensor(3.0),
        "flags": torch.tensor([True, False, True]),
        "counts": torch.arange(5),
        "empty": torch.zeros(0, 4),
        "larger than a chunk": torch.randn(50, 50),
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copies, "CHUNK_BYTES", 128)


def test_copies_do_not_change_with_what_was_copied():
    copies, originals = HostCopies(page_locked=False), tensors()
    copied = {name: copies.begin_copy(tensor) for name, tensor in originals.items()}
    copies.wait_for_copies()
    for original in originals.values():
        original.zero_()
    assert equal_tensors(copied, tensors())
    assert {name: copy.dtype for name, copy in copied.items()} == {
        name: tensor.dtype for name, tensor in tensors().items()
    }
    assert all(copy.is_contiguous() for copy in copied.values())
    # transformers takes tensors that share a storage for tied weights
    filled = [copy for copy in copied.values() if copy.numel()]
    assert len({copy.untyped_storage().data_ptr() for copy in filled}) == len(filled)


def test_every_snapshot_uses_the_memory_of_the_first():
    copies = HostCopies(page_locked=False)
    places = []
    for _ in range(3):
        copies.begin_snapshot()
        copied = [copies.begin_copy(tensor) for tensor in tensors().values()]
        places.append([copy.data_ptr() for copy in copied])
    assert places[0] == places[1] == places[2]
    # of 12,000 bytes, and the ends of chunks that were too small for the next
    assert sum(chunk.memory.nbytes for chunk in copies._chunks) < 13_000


def test_memory_that_cannot_be_locked_is_used_all_the_same(monkeypatch):
    calls: list[str] = []

    def register(address: int, size: int, flags: int) -> int:
        calls.append("lock")
        return len(calls) - 1

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda _: calls.append("unlock")
    )
    monkeypatch.setattr(host_copies, "_cuda_runtime", lambda: runtime)
    warnings: list[str] = []
    logger = SimpleNamespace(warning=lambda *_: warnings.append(""))
    monkeypatch.setattr(host_copies, "get_logger", lambda: logger)
    monkeypatch.setattr(host_copies, "_take_cuda_error", lambda: warnings.append("taken"))
    copies = HostCopies(page_locked=True)
    copied = {name: copies.begin_copy(tensor) for name, tensor in tensors().items()}
    assert equal_tensors(copied, tensors())
    chunks = len(copies._chunks)
    assert calls == ["lock"] * chunks and warnings == ["", "taken"] * (chunks - 1)
    copies.free()
    assert calls[chunks:] == ["unlock"] and not copies._chunks


def test_a_limit_of_the_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_copies, "CGROUP", tmp_path / "absent")
    machine = available_host_bytes()
    assert machine > 0
    monkeypatch.setattr(host_copies, "CGROUP", tmp_path)
    (tmp_path / "memory.stat").write_text("anon 300\nfile 900\nshmem 50\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_host_bytes() == 650
    (tmp_path / "memory.max").write_text("max\n")
    assert available_host_bytes() > 650


@pytest.mark.parametrize(("other_host", "fits"), [("here", False), ("there", True)])
def test_copies_of_the_ranks_of_a_machine_have_to_fit_in_its_memory_together(
    monkeypatch: pytest.MonkeyPatch, other_host: str, fits: bool
):
    monkeypatch.setattr(host_copies, "available_host_bytes", lambda: 2 * 2**30)
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    ranks: Any = SimpleNamespace(gather_objects=lambda own: [own, own._replace(host=other_host)])
    problem = why_copies_do_not_fit(ranks, 2**30)
    words = "a copy of 2.00 GiB is too large for here, where 2.00 GiB are available"
    assert problem is None if fits else problem is not None and problem.startswith(words)
    assert why_copies_do_not_fit(ranks, 2 * 2**30) is not None
