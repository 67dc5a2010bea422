"""What operators keep for the backward pass follows the option and the memory of the device."""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel import kernels, train
from flame_accel.kernels import configured
from flame_accel.kernels.operator_recompute import (
    choose_operator_recompute,
    mode_or_memory_keeps_rwkv7_intermediates,
    rwkv7_intermediate_bytes,
)

GIB = 2**30


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    kernels.uninstall()
    kernels.install()


def layer_of_340m() -> Any:
    parameters = [torch.empty(4_600_000, device="meta")]
    return SimpleNamespace(
        hidden_size=1024, head_dim=64, num_hidden_layers=24, parameters=lambda: parameters
    )


@pytest.mark.parametrize(
    ("tokens", "memory", "keeps"),
    [
        (32_768, 80 * GIB, True),
        (65_536, 80 * GIB, False),
        (65_536, 139 * GIB, True),
        (131_072, 139 * GIB, False),
        (1024, None, False),
    ],
)
def test_auto_keeps_what_fits(tokens, memory, keeps):
    assert mode_or_memory_keeps_rwkv7_intermediates(layer_of_340m(), tokens, memory) == keeps


@pytest.mark.parametrize("mode", ["never", "always"])
def test_the_other_modes_ask_for_no_memory(mode):
    choose_operator_recompute(mode)
    for memory in (None, GIB):
        assert mode_or_memory_keeps_rwkv7_intermediates(layer_of_340m(), 10**6, memory) == (
            mode == "never"
        )


def test_bytes_are_those_of_the_tensors_that_are_kept():
    # per channel two sums in fp32 and six tensors in bf16; 16 heads with rows of 64 products, two
    # in bf16 and two in fp32; a state of 64 x 64 for each head and chunk
    expected = 1024 * (8 + 12) + 16 * 64 * 12 + 16 * 64 * 64 * 2 // 64
    assert rwkv7_intermediate_bytes(1024, 64) == expected


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_operators_of_kda_and_rwkv7_are_asked_to_keep_everything_only_if_differentiated(mode):
    kda: Any = importlib.import_module("fla.layers.kda")
    rwkv7: Any = importlib.import_module("fla.layers.rwkv7")
    asked: list[bool] = []

    def operator(*args: Any, disable_recompute: bool = False) -> None:
        asked.append(disable_recompute)

    from flame_accel.kernels.wrapping import wrap_functions

    paths = ["fla.ops.kda.chunk.chunk_kda", "fla.ops.rwkv7.chunk.chunk_rwkv7"]
    wrap_functions(paths, lambda original: lambda *args, **kwargs: operator(*args, **kwargs))
    choose_operator_recompute(mode)
    kda.chunk_kda()
    rwkv7.chunk_rwkv7()
    with torch.no_grad():
        kda.chunk_kda()
    assert asked == [mode == "never", mode == "never", False]


@pytest.mark.covers_option("model.recompute_operators")
@pytest.mark.parametrize("active", ["triton", "torch"])
def test_model_recompute_operators_is_chosen_where_triton_runs(
    monkeypatch, train_here, flags, active
):
    chosen: list[str] = []
    monkeypatch.setattr(configured, "install", lambda kind: active)
    monkeypatch.setattr(configured, "choose_operator_recompute", chosen.append)
    monkeypatch.setattr(train, "check_run_support_and_log_warnings", stop)
    options = {"model.recompute_operators": "never", "model.fused_kernels": False}
    with pytest.raises(StopIteration):
        train_here(flags(**options))
    assert chosen == ["never"] * (active == "triton")


def stop(*args: object) -> None:
    raise StopIteration
