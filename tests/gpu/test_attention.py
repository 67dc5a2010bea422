"""Laws of attention without flash-attn that need a CUDA device: PyTorch's flash kernels."""

from functools import partial

import pytest
import torch
from torch import Tensor

from flame_accel.kernels.attention.flash_attention import flash_attn_func, flash_attn_varlen_func
from tests.helpers.attention import (
    inputs,
    reference,
)
from tests.helpers.gradients import outputs_and_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
LENGTHS = (1, 40, 93, 1, 700, 5, 130, 17, 93)
WINDOWS = [(-1, -1), (6, 0), (200, 0)]
each_precision = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
each_window = pytest.mark.parametrize("window", WINDOWS, ids=str)
each_sharing = pytest.mark.parametrize("groups", [4, 1])


def on_device(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to("cuda", dtype) for x in tensors]


def assert_same(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == dtype
        assert (a.float() - e.float()).norm() <= TOLERANCE[dtype] * e.float().norm(), (
            f"tensor {index}"
        )


@each_precision
@each_window
@each_sharing
@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (40, 300), (513, 513)])
@pytest.mark.parametrize("width", [64, 20])
def test_rows_equal_softmax_attention(queries, keys, groups, width, window, dtype):
    tensors = on_device(inputs(2, queries, keys, 4, groups, width), dtype)
    actual = outputs_and_gradients(
        partial(flash_attn_func, causal=True, window_size=window), tensors
    )
    expected = outputs_and_gradients(
        partial(reference, window=window), [x.float() for x in tensors]
    )
    assert_same(actual, expected, dtype)


def packed(lengths_k: tuple[int, ...], lengths_q: tuple[int, ...], window: tuple[int, int]):
    return partial(
        flash_attn_varlen_func,
        cu_seqlens_q=torch.tensor([0, *lengths_q], device="cuda").cumsum(0),
        cu_seqlens_k=torch.tensor([0, *lengths_k], device="cuda").cumsum(0),
        # what fla passes: the length of the row
        max_seqlen_q=sum(lengths_q),
        max_seqlen_k=sum(lengths_k),
        causal=True,
        window_size=window,
    )


@each_precision
@each_window
@each_sharing
@pytest.mark.parametrize("decoding", [False, True])
def test_documents_equal_softmax_attention_of_each(decoding, groups, window, dtype):
    lengths_q = (1,) * len(LENGTHS) if decoding else LENGTHS

    def separate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(q.split(lengths_q), k.split(LENGTHS), v.split(LENGTHS), strict=True)
        return torch.cat([reference(*(x[None] for x in part), window=window)[0] for part in parts])

    tensors = on_device(
        [x[0] for x in inputs(1, sum(lengths_q), sum(LENGTHS), 4, groups, 64)], dtype
    )
    actual = outputs_and_gradients(packed(LENGTHS, lengths_q, window), tensors)
    assert_same(actual, outputs_and_gradients(separate, [x.float() for x in tensors]), dtype)


@each_precision
@each_window
def test_a_document_does_not_depend_on_its_neighbours_bits(window, dtype):
    q, k, v = on_device([x[0] for x in inputs(1, sum(LENGTHS), sum(LENGTHS), 4, 2, 64)], dtype)
    attend = packed(LENGTHS, LENGTHS, window)
    first, last = 41, 134
    before = attend(q, k, v)
    for x in (q, k, v):
        x[:first] = torch.randn_like(x[:first])
        x[last:] = 7.0
    after = attend(q, k, v)
    assert not torch.equal(after[:first], before[:first])
    assert torch.equal(after[first:last], before[first:last])
