"""Laws of all variants of attention: references, packed documents apart, linear memory."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.helpers.attention_variants import DOCUMENTS, LENGTHS, VARIANTS, assert_same, inputs, run

each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@each_variant
@pytest.mark.parametrize("length", LENGTHS)
def test_variants_equal_their_references(variant, length):
    tensors = inputs(variant, length)
    assert_same(run(variant.ours, tensors), run(variant.theirs, tensors))


@each_variant
def test_packed_documents_equal_separate_ones(variant):
    tensors = inputs(variant, sum(DOCUMENTS))
    edges = torch.tensor([0, *DOCUMENTS]).cumsum(0)

    def separate(*tensors: Tensor) -> Tensor:
        parts = zip(*(x.split(DOCUMENTS, 1) for x in tensors), strict=True)
        return torch.cat([variant.ours(*part) for part in parts], 1)

    assert_same(run(partial(variant.ours, cu_seqlens=edges), tensors), run(separate, tensors), 1e-5)


@each_variant
def test_a_document_does_not_depend_on_its_neighbours_bits(variant):
    tensors = inputs(variant, sum(DOCUMENTS))
    ours = partial(variant.ours, cu_seqlens=torch.tensor([0, *DOCUMENTS]).cumsum(0))
    first, last = 41, 134
    before = run(ours, tensors)
    for x in tensors:
        x[:, :first] = x[:, :first].flip(1)
        x[:, last:] = 0.5
    after = run(ours, tensors)
    assert not torch.equal(after[0][:, :first], before[0][:, :first])
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a[:, first:last], b[:, first:last])


@each_variant
def test_memory_grows_linearly_with_the_length(variant):
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept[-1] += x.numel()
        return x

    for length in (256, 1024):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            variant.ours(*(x.requires_grad_() for x in inputs(variant, length)))
    assert kept[1] <= 4.3 * kept[0]
