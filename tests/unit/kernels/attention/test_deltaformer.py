"""DeltaFormer equals fla's reference: values and all gradients; packed documents; padding."""

import pytest
import torch
from fla.ops.deltaformer.naive import naive_deltaformer_attn
from torch import Tensor

from flame_accel.kernels.attention import deltaformer
from flame_accel.kernels.attention.deltaformer import deltaformer_attn
from tests.helpers.gradients import assert_close

LENGTHS = (1, 40, 193, 1, 66, 5)
EDGES = torch.tensor([0, *LENGTHS]).cumsum(0)
FIRST, LAST = 41, 234

Tensors = list[Tensor]


def draw_inputs(n: int, t: int) -> Tensors:
    torch.manual_seed(t)
    return [*torch.randn(3, n, t, 2, 8).unbind(), torch.rand(n, t, 2)]


def gradients(o: Tensor, leaves: Tensors) -> Tensors:
    torch.manual_seed(0)
    return list(torch.autograd.grad((o * torch.randn(o.shape)).sum(), leaves))


@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 50])
def test_deltaformer_equals_recurrence(tokens: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deltaformer, "BLOCK", 16)
    x = [y.requires_grad_() for y in draw_inputs(2, tokens)]
    o, expected = deltaformer_attn(*x), naive_deltaformer_attn(*x)
    kept = x[2:3] if tokens == 1 else x
    assert_close([o, *gradients(o, kept)], [expected, *gradients(expected, kept)])


def test_deltaformer_without_strengths_and_with_shared_keys():
    q, k, v, beta = draw_inputs(2, 50)
    assert_close([deltaformer_attn(q, k, v)], [naive_deltaformer_attn(q, k, v)])
    k, v = k[:, :, :1], v[:, :, :1]
    expected = naive_deltaformer_attn(q, k.expand_as(q), v.expand_as(q), beta)
    assert_close([deltaformer_attn(q, k, v, beta)], [expected])


def test_packed_deltaformer_documents_equal_separate_ones():
    x = [y.requires_grad_() for y in draw_inputs(1, sum(LENGTHS))]
    o = deltaformer_attn(*x, cu_seqlens=EDGES)
    documents = zip(*(y.split(LENGTHS, 1) for y in x), strict=True)
    expected = torch.cat([deltaformer_attn(*d) for d in documents], 1)
    assert_close([o, *gradients(o, x)], [expected, *gradients(expected, x)], 1e-5)


@pytest.mark.parametrize("triton", [False, True])
def test_deltaformer_padding_counts_for_nothing(monkeypatch, triton):
    # fla's function on a GPU is given packed rows, and no mask
    monkeypatch.setattr(
        deltaformer,
        "_triton_deltaformer_attn",
        lambda q, k, v, beta, mask, edges, C: deltaformer_attn(q, k, v, beta, cu_seqlens=edges),
    )
    attend = deltaformer_attn
    if triton:
        attend = deltaformer.run_triton_deltaformer_attn_without_padding
    x = draw_inputs(2, 50)
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :13] = 0
    o = attend(*x, attention_mask=mask)
    assert_close([o[0:1, 13:]], [naive_deltaformer_attn(*(y[0:1, 13:] for y in x))])
    assert_close([o[1:]], [naive_deltaformer_attn(*(y[1:] for y in x))])
    assert not o[0, :13].any()


def test_a_document_does_not_depend_on_its_neighbours_bits():
    x = draw_inputs(1, sum(LENGTHS))
    mixed = [y.clone() for y in x]
    for y in mixed:
        y[:, :FIRST] = -torch.rand_like(y[:, :FIRST])
        y[:, LAST:] = -7.0
    o, changed = (deltaformer_attn(*y, cu_seqlens=EDGES) for y in (x, mixed))
    assert not torch.equal(changed[:, :FIRST], o[:, :FIRST])
    assert torch.equal(changed[:, FIRST:LAST], o[:, FIRST:LAST])
