"""Functions of transformers' layers with a state: packed documents as each document alone."""

import importlib
import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.transformers_layers import PACKED_FUNCTIONS, install_packed_functions

BOUNDARIES = (0, 3, 33, 103, 104, 130)
HEADS, WIDTH = 4, 16


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def modeling(name: str) -> ModuleType:
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    install_packed_functions(module)
    return module


def convolve(boundaries: Tensor | None, span: slice, activation: str) -> Tensor:
    inputs = randn(1, 8, BOUNDARIES[-1], seed=0)[:, :, span]
    function: Any = modeling("qwen3_next").causal_conv1d_fn
    outputs = function(
        inputs,
        randn(8, 4, seed=1),
        randn(8, seed=2),
        activation=activation,
        cu_seq_lens_q=boundaries,
    )
    return outputs.mT


def heads_inputs(span: slice, *, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens = BOUNDARIES[-1]
    return (
        randn(1, tokens, key_heads, WIDTH, seed=0)[:, span],
        randn(1, tokens, key_heads, WIDTH, seed=1)[:, span],
        randn(1, tokens, HEADS, WIDTH, seed=2)[:, span],
    )


def gated_delta_rule(boundaries: Tensor | None, span: slice) -> Tensor:
    function: Any = modeling("qwen3_next").torch_chunk_gated_delta_rule
    decay = -randn(1, BOUNDARIES[-1], HEADS, seed=3).abs()[:, span]
    beta = randn(1, BOUNDARIES[-1], HEADS, seed=4).sigmoid()[:, span]
    return function(
        *heads_inputs(span, key_heads=2), g=decay, beta=beta, initial_state=None,
        output_final_state=False, use_qk_l2norm_in_kernel=True, cu_seqlens=boundaries,
    )[0]  # fmt: skip


def kda(boundaries: Tensor | None, span: slice) -> Tensor:
    function: Any = modeling("kimi_linear").chunk_kimi_delta_attention
    decay = -randn(1, BOUNDARIES[-1], HEADS, WIDTH, seed=3).abs()[:, span]
    beta = randn(1, BOUNDARIES[-1], HEADS, seed=4).sigmoid()[:, span]
    return function(
        *heads_inputs(span, key_heads=HEADS), g=decay, beta=beta, initial_state=None,
        output_final_state=False, use_qk_l2norm_in_kernel=True, cu_seq_lens_q=boundaries,
    )[0]  # fmt: skip


def mamba2(boundaries: Tensor | None, span: slice) -> Tensor:
    function: Any = modeling("bamba").mamba2_chunk_scan
    b, c, x = heads_inputs(span, key_heads=2)
    return function(
        x, randn(1, BOUNDARIES[-1], HEADS, seed=3)[:, span], -randn(HEADS, seed=4).exp(), b, c,
        chunk_size=32, D=randn(HEADS, seed=5), z=None, return_final_states=False,
        dt_bias=randn(HEADS, seed=6), dt_softplus=True, initial_states=None, dt_limit=(0.1, 2.0),
        cu_seq_lens_q=boundaries,
    )  # fmt: skip


FUNCTIONS = {
    "convolution": lambda boundaries, span: convolve(boundaries, span, "silu"),
    "convolution with gelu": lambda boundaries, span: convolve(boundaries, span, "gelu"),
    "gated delta rule": gated_delta_rule,
    "kda": kda,
    "mamba2": mamba2,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_packed_documents_are_each_alone(function):
    """Alone, transformers' own function computes them."""
    packed = function(torch.tensor(BOUNDARIES, dtype=torch.int32), slice(None))
    for begin, end in itertools.pairwise(BOUNDARIES):
        alone = function(None, slice(begin, end))
        torch.testing.assert_close(packed[:, begin:end], alone, rtol=1e-4, atol=1e-4)


def test_only_packed_documents_run_on_flas_functions():
    module = ModuleType("modeling")
    calls = []
    for name in PACKED_FUNCTIONS:
        setattr(module, name, lambda *arguments, name=name, **options: calls.append(name))
    assert install_packed_functions(module)
    served = vars(module).copy()
    assert install_packed_functions(module) and vars(module) == served
    module.causal_conv1d_fn(torch.zeros(1, 2, 3), torch.zeros(2, 4))
    module.mamba2_split_conv1d_scan_combined(torch.zeros(1))
    assert calls == ["causal_conv1d_fn", "mamba2_split_conv1d_scan_combined"]
    boundaries = torch.tensor([0, 3])
    assert module.mamba2_split_conv1d_scan_combined(cu_seq_lens_q=boundaries) is None
    assert len(calls) == 2


def test_a_module_without_such_functions_is_left_alone():
    assert not install_packed_functions(ModuleType("modeling"))
