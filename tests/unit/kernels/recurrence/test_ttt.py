"""Test-time training equals fla's reference, and documents are apart: values and all gradients."""

import pytest
import torch
from fla.ops.ttt import chunk_ttt_linear, fused_chunk_ttt_linear
from fla.ops.ttt.naive import chunk_ttt_linear_ref
from torch import Tensor

from flame_accel.kernels.recurrence import ttt
from tests.helpers.gradients import assert_close, assert_same_results, outputs_and_gradients
from tests.helpers.recurrence import unit

HEADS, WIDTH = 2, 16
LENGTHS = (1, 20, 16, 3)


def draw_inputs(rows: int, tokens: int, states: int) -> list[Tensor]:
    """q, k, v, weight, bias, rates, and a map to start from."""
    torch.manual_seed(tokens)
    q, k = unit(rows, tokens, HEADS, WIDTH), unit(rows, tokens, HEADS, WIDTH)
    v = torch.randn(rows, tokens, HEADS, WIDTH)
    w, b = torch.randn(2, HEADS, WIDTH).unbind()
    rates = 0.05 * torch.rand(rows, tokens, HEADS, 1)
    h, bias = (0.1 * torch.randn(states, HEADS, n, WIDTH) for n in (WIDTH, 1))
    return [q, k, v, w, b, rates, h, bias]


def run(*x: Tensor, **options: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, h, bias = x
    return ttt.chunk_ttt_linear(
        *inputs, initial_state=h, initial_state_bias=bias, output_final_state=True, **options
    )


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 40])
def test_ttt_equals_reference(tokens: int):
    def reference(*x: Tensor) -> tuple[Tensor, ...]:
        q, *inputs, h, bias = x
        # fla's reference scales its argument in place
        return chunk_ttt_linear_ref(
            1 * q, *inputs, initial_state=h, initial_state_bias=bias, output_final_state=True
        )

    assert_same_results(run, reference, draw_inputs(2, tokens, 2), tolerance=1e-4)


def test_packed_documents_equal_separate_ones():
    edges = torch.tensor([0, *LENGTHS]).cumsum(0)

    def packed(*x: Tensor) -> tuple[Tensor | None, ...]:
        return run(*x, cu_seqlens=edges)

    def separate(q, k, v, w, b, rates, h, bias) -> tuple[Tensor, ...]:
        documents = zip(*(x.split(LENGTHS, 1) for x in (q, k, v, rates)), strict=True)
        starts = zip(h.split(1), bias.split(1), strict=True)
        results = [
            run(*document[:3], w, b, document[3], *start)
            for document, start in zip(documents, starts, strict=True)
        ]
        o, *states = zip(*results, strict=True)
        return torch.cat(o, 1), *(torch.cat(x) for x in states)

    tensors = draw_inputs(1, sum(LENGTHS), len(LENGTHS))
    expected = outputs_and_gradients(separate, tensors)
    assert_close(outputs_and_gradients(packed, tensors), expected, 1e-5)


def test_one_rate_for_all_tokens_and_both_of_flas_functions():
    q, k, v, w, b, rates, _, _ = draw_inputs(2, 20, 2)
    expected = chunk_ttt_linear(q, k, v, w, b, torch.full_like(rates, 0.1))[0]
    for function in (chunk_ttt_linear, fused_chunk_ttt_linear):
        assert torch.equal(function(q, k, v, w, b, 0.1)[0], expected)
