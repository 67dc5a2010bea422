"""Which calls of softmax attention go to flash-attn-4, and with which arguments.

Its functions are stood in for by ones with their signatures (4.0.0b36) that compute on the CPU.
"""

import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.attention import flash_attention
from flame_accel.kernels.packages import flash_attn_4, package_kernels_disabled
from tests.helpers.attention import assert_same, inputs, reference, separate
from tests.helpers.gradients import outputs_and_gradients

Window = tuple[int | None, int | None]
LENGTHS = (600, 30, 0, 1, 120, 0)


class FakePackage(ModuleType):
    """`flash_attn.cute`: fewer arguments, none under another name."""

    calls: list[tuple[str, Window, bool]]

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (None, None),
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append(("rows", window_size, deterministic))
        left = -1 if window_size[0] is None else window_size[0]
        assert causal
        return reference(q, k, v, causal, (left, 0), softmax_scale), None

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (None, None),
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append(("documents", window_size, deterministic))
        assert cu_seqlens_q is not None
        assert cu_seqlens_k is not None
        assert cu_seqlens_q.dtype == torch.int32
        lengths = cu_seqlens_q.diff().tolist()
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert max_seqlen_q == max_seqlen_k
        assert max_seqlen_q is not None
        assert max_seqlen_q >= max(lengths)
        assert causal
        left = -1 if window_size[0] is None else window_size[0]
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        rows = [
            reference(*(x[None] for x in part), True, (left, 0), softmax_scale)[0]
            for part in parts
            if part[0].shape[0]
        ]
        return torch.cat(rows), None


@pytest.fixture
def package(monkeypatch) -> Iterator[FakePackage]:
    fake = FakePackage("flash_attn.cute")
    fake.calls = []
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", fake)
    # fp32 tensors on the CPU pass for what the kernels take
    monkeypatch.setattr(flash_attention, "_supports_flash_kernel", lambda q: True)
    monkeypatch.setattr(flash_attn_4, "_is_half_on_gpu", lambda q: True)
    flash_attn_4.activate()
    yield fake
    flash_attn_4.deactivate()


def documents(lengths: tuple[int, ...], window: tuple[int, int] = (-1, -1)):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    longest = sum(lengths)
    return partial(
        flash_attention.flash_attn_varlen_func,
        cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest, max_seqlen_k=longest, causal=True, window_size=window,
    )  # fmt: skip


@pytest.mark.parametrize(("window", "asked"), [((-1, -1), (None, None)), ((99, 0), (99, 0))])
@pytest.mark.parametrize("groups", [4, 2])
def test_training_is_served(package, window, asked, groups):
    rows = inputs(2, 640, 640, 4, groups, 64)
    attend = partial(flash_attention.flash_attn_func, causal=True, window_size=window)
    assert_same(
        outputs_and_gradients(attend, rows),
        outputs_and_gradients(partial(reference, window=window), rows),
    )
    packed = [x[0] for x in inputs(1, sum(LENGTHS), sum(LENGTHS), 4, groups, 64)]
    actual = outputs_and_gradients(documents(LENGTHS, window), packed)
    kept = tuple(length for length in LENGTHS if length)
    expected = separate(kept, kept, [x[None] for x in packed], window=window)
    assert_same([x.view(y.shape) for x, y in zip(actual, expected, strict=True)], expected)
    assert package.calls == [("rows", asked, False), ("documents", asked, False)]


def test_the_scale_and_deterministic_gradients_are_passed_on(package):
    q, k, v = inputs(1, 512, 512, 2, 2, 64)
    torch.use_deterministic_algorithms(True)
    try:
        actual = flash_attention.flash_attn_func(q, k, v, softmax_scale=0.3, causal=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same([actual], [reference(q, k, v, scale=0.3)])
    assert package.calls == [("rows", (None, None), True)]


@pytest.mark.parametrize(
    ("queries", "keys", "width", "causal", "told"),
    [
        (600, 600, 96, True, "heads of 96 channels"),
        (600, 700, 64, True, "other queries than keys"),
        (600, 600, 64, False, "attention that is not causal"),
        (500, 500, 64, True, "documents of less than 512 tokens"),
    ],
)
def test_other_calls_run_as_without_the_package_and_the_log_says_why_once(
    package, monkeypatch, caplog, queries, keys, width, causal, told
):
    monkeypatch.setattr(flash_attention, "_supports_flash_kernel", lambda q: False)
    q, k, v = inputs(1, queries, keys, 2, 2, width)
    with caplog.at_level("INFO", logger="flame_accel"):
        for _ in range(2):
            actual = flash_attention.flash_attn_func(q, k, v, causal=causal)
    assert_same([actual], [reference(q, k, v, causal)])
    assert package.calls == []
    assert [told in record.message for record in caplog.records] == [True]
    caplog.clear()
    with torch.no_grad(), caplog.at_level("INFO", logger="flame_accel"):
        flash_attention.flash_attn_func(q[:, -1:], k, v, causal=causal)
    assert not caplog.records


def test_the_host_is_not_served(package, monkeypatch, caplog):
    monkeypatch.undo()
    with caplog.at_level("INFO", logger="flame_accel"):
        q, k, v = inputs(1, 512, 512, 2, 2, 64)
        flash_attention.flash_attn_func(q, k, v, causal=True)
    assert package.calls == []
    assert "tensors of torch.float32 on cpu" in caplog.text


def test_a_block_can_run_without_the_package(package, monkeypatch):
    monkeypatch.setattr(flash_attention, "_supports_flash_kernel", lambda q: False)
    q, k, v = inputs(1, 512, 512, 2, 2, 64)
    with package_kernels_disabled():
        actual = flash_attention.flash_attn_func(q, k, v, window_size=(99, 0), causal=True)
    assert_same([actual], [reference(q, k, v, window=(99, 0))])
    assert package.calls == []


def test_compiled_kernels_are_kept_in_the_cache_folder(package, monkeypatch, tmp_path):
    for name in ("ENABLED", "DIR"):
        monkeypatch.delenv(f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}")
    monkeypatch.setenv("FLAME_ACCEL_CACHE", str(tmp_path))
    flash_attn_4.activate()
    import os

    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
    folder = os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"]
    assert folder == str(tmp_path / "flash_attn_4")
