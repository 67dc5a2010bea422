"""The two functions that fla imports from flash-attn, on PyTorch's kernels."""

from functools import partial
from itertools import product

import pytest
import torch
from fla.layers.attn import Attention
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.flash_attention import flash_attn_func
from tests.helpers.attention import (
    LENGTHS,
    Window,
    assert_same,
    inputs,
    packed,
    reference,
    separate,
)
from tests.helpers.gradients import outputs_and_gradients


def test_documents_with_earlier_keys_or_without_causality():
    queries, keys = (1, 1, 5, 30), (17, 1, 30, 30)
    for (lengths, causal), window in product(
        ((queries, True), (queries, False), (keys, False)), ((-1, -1), (6, 0))
    ):
        tensors = inputs(1, sum(lengths), sum(keys), 4, 2)
        actual = packed(lengths, keys, tensors, causal, window)
        assert_same(actual, separate(lengths, keys, tensors, causal=causal, window=window))


def test_dtypes_are_kept_and_autocast_decides():
    q, k, v = inputs(2, 30, 30, 2, 2)
    expected = reference(q, k, v)
    half = flash_attn_func(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = flash_attn_func(q, k, v, causal=True)
    for o in (half, cast):
        assert o.dtype == torch.bfloat16
        assert_same([o.float()], [expected], 5e-3)


@pytest.mark.parametrize(
    "options", [{"dropout_p": 0.1}, {"softcap": 30.0}, {"return_attn_probs": True}]
)
def test_what_pytorch_lacks_is_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        partial(flash_attn_func, **options)(*inputs(1, 4, 4, 2, 2))


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float | None,
    window_size: Window,
    enable_gqa: bool = True,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` promises, for machines that cannot run it."""
    lengths = [edges.diff().tolist() for edges in (edges_q, edges_k)]
    assert edges_q.dtype == edges_k.dtype == torch.int32
    assert [max(x) for x in lengths] == [longest_q, longest_k]
    assert q.shape[-1] % 8 == 0
    parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
    return torch.cat(
        [reference(*(x[None] for x in part), False, window_size, scale)[0] for part in parts]
    )


@pytest.fixture
def flash_kernel(monkeypatch):
    module = "flame_accel.kernels.attention.flash_attention"
    monkeypatch.setattr(f"{module}._supports_flash_kernel", lambda q: True)
    monkeypatch.setattr(f"{module}.varlen_attn", kernel)


@pytest.mark.parametrize("window", [(-1, -1), (6, 0), (200, 0)])
@pytest.mark.parametrize("width", [16, 20])
def test_the_flash_kernel_is_called_as_it_wants_to_be(flash_kernel, width, window):
    for queries, keys in ((1, 90), (5, 90), (90, 90)):
        tensors = inputs(2, queries, keys, 4, 2, width)
        actual = outputs_and_gradients(
            partial(flash_attn_func, causal=True, window_size=window), tensors
        )
        assert_same(actual, outputs_and_gradients(partial(reference, window=window), tensors))
    for lengths in (LENGTHS, (1,) * len(LENGTHS)):
        keys = tuple(max(x) for x in zip(lengths, LENGTHS, strict=True))
        tensors = inputs(1, sum(lengths), sum(keys), 4, 2, width)
        actual = packed(lengths, keys, tensors, window=window)
        assert_same(actual, separate(lengths, keys, tensors, window=window))


def test_the_layer_takes_boundaries_of_all_rows():
    torch.manual_seed(0)
    layer = Attention(hidden_size=32, num_heads=2, layer_idx=0)
    x, cu_seqlens = torch.randn(3, 8, 32), torch.tensor([0, 5, 16, 24], dtype=torch.int32)
    with torch.no_grad():
        o = layer(x, cu_seqlens=cu_seqlens)[0]
        expected = layer(x.view(1, 24, 32), cu_seqlens=cu_seqlens)[0]
    assert torch.allclose(o, expected.view(x.shape), atol=1e-6)
