"""Softmax attention with forget gates and sinks."""

import pytest
import torch
from fla.ops.attn.naive import naive_attn_decoding, naive_parallel_attn
from torch import Tensor

from flame_accel.kernels.attention import (
    forgetting_attention,
)
from tests.helpers.attention_variants import (
    DOCUMENTS,
    HEADS,
    WIDTH,
    assert_same,
    gates,
    keys,
    normal,
    queries,
    run,
)


@pytest.mark.parametrize("window", [None, 3])
def test_sinks_and_plain_attention_equal_the_reference(window):
    torch.manual_seed(0)
    tensors = [queries(40), keys(40), keys(40), torch.randn(HEADS)]

    def ours(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        with_sink = forgetting_attention.parallel_attn(q, k, v, window_size=window, sink_bias=sink)
        return with_sink + forgetting_attention.parallel_attn(q, k, v, window_size=window)

    def theirs(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        with_sink = naive_parallel_attn(q, k, v, window_size=window, sink_bias=sink)[0]
        return with_sink + naive_parallel_attn(q, k, v, window_size=window)[0]

    assert_same(run(ours, tensors), run(theirs, tensors))


@pytest.mark.parametrize("options", [{}, {"window_size": 4}, {"do_gate_scale": True}])
@pytest.mark.parametrize("gated", [False, True])
def test_one_decoding_step_equals_the_reference(gated, options):
    torch.manual_seed(0)
    total = sum(DOCUMENTS)
    q, k, v = normal(1, len(DOCUMENTS), HEADS, WIDTH), keys(total), keys(total)
    g = gates(total) if gated else None
    options |= {"cu_seqlens": torch.tensor([0, *DOCUMENTS]).cumsum(0)}
    options |= {"sink_bias": torch.randn(HEADS)} if "window_size" in options else {}
    actual = forgetting_attention.attn_decoding_one_step(q, k, v, g, **options)
    assert_same([actual], [naive_attn_decoding(q, k, v, g, **options)])


def test_a_window_of_no_key_leaves_all_to_the_sinks():
    q, k, v = queries(6), keys(6), keys(6)
    tensors = [x.requires_grad_() for x in (q, k, v, torch.randn(HEADS))]
    o = forgetting_attention.parallel_attn(q, k, v, window_size=0, sink_bias=tensors[3])
    assert torch.equal(o, naive_parallel_attn(q, k, v, window_size=0, sink_bias=tensors[3])[0])
    assert not any(g.any() for g in torch.autograd.grad(o.sum(), tensors))
