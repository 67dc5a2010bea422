"""Log-linear attention and DeltaFormer equal fla's references; so do their packed documents."""

import pytest
import torch
from fla.ops.deltaformer.naive import naive_deltaformer_attn
from fla.ops.log_linear_attn.naive import naive_log_linear_attn
from torch import Tensor

from flame_accel.kernels.attention import deltaformer
from flame_accel.kernels.attention.deltaformer import deltaformer_attn
from flame_accel.kernels.recurrence import log_linear
from flame_accel.kernels.recurrence.log_linear import chunk_log_linear_attn, run_triton_in_one_dtype

TOLERANCE = 1e-4
LENGTHS = (1, 40, 193, 1, 66, 5)
EDGES = torch.tensor([0, *LENGTHS]).cumsum(0)
FIRST, LAST = 41, 234

Tensors = list[Tensor]


def log_linear_inputs(n: int, t: int) -> Tensors:
    """Queries and keys of 2 heads, values, log decays and weights of 10 levels of 4."""
    torch.manual_seed(t)
    q, k = torch.randn(2, n, t, 2, 8).unbind()
    g = -6 * torch.rand(n, t, 4) ** 8
    return [q, k, torch.randn(n, t, 4, 6), g, torch.rand(n, t, 4, 10)]


def deltaformer_inputs(n: int, t: int) -> Tensors:
    torch.manual_seed(t)
    return [*torch.randn(3, n, t, 2, 8).unbind(), torch.rand(n, t, 2)]


def gradients(o: Tensor, leaves: Tensors) -> Tensors:
    torch.manual_seed(0)
    return list(torch.autograd.grad((o * torch.randn(o.shape)).sum(), leaves))


def assert_same(actual: Tensors, expected: Tensors, tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * e.norm(), f"tensor {index}"


@pytest.mark.parametrize("tokens", [2, 5, 64, 65, 128, 300])
def test_log_linear_attention_equals_matrix(tokens: int):
    x = [y.requires_grad_() for y in log_linear_inputs(2, tokens)]
    o, expected = chunk_log_linear_attn(*x)[0], naive_log_linear_attn(*x)
    assert_same([o, *gradients(o, x)], [expected, *gradients(expected, x)])


def test_first_token_reads_itself():
    q, k, v, _, levels = x = log_linear_inputs(2, 1)
    q, k = (y.repeat_interleave(2, 2) for y in (q, k))
    expected = (q * k).sum(-1, keepdim=True) * v * levels[..., :1] * 8**-0.5
    assert_same([chunk_log_linear_attn(*x, scale=None)[0]], [expected])


def test_kernels_get_weights_of_levels_in_the_dtype_of_queries(monkeypatch):
    monkeypatch.setattr(log_linear, "_triton_chunk_log_linear_attn", chunk_log_linear_attn)
    q, k, v, g, levels = log_linear_inputs(2, 70)
    x = [q.bfloat16(), k.bfloat16(), v.bfloat16(), g, levels.requires_grad_()]
    o, _ = run_triton_in_one_dtype(*x)
    [found] = gradients(o, x[4:])
    x[4] = levels.bfloat16()
    assert torch.equal(o, chunk_log_linear_attn(*x)[0])
    assert found.dtype == torch.float32
    assert found.norm() > 0


@pytest.mark.parametrize("cuts", [(37, 3, 1, 60, 199), (64, 64, 172), (256, 44), (1,) * 130])
def test_log_linear_attention_continues_where_it_stopped(cuts: tuple[int, ...]):
    x = [y[:, : sum(cuts)] for y in log_linear_inputs(2, 300)]
    expected, final = chunk_log_linear_attn(*x, output_final_state=True)
    state, outputs = None, []
    for part in zip(*(y.split(cuts, 1) for y in x), strict=True):
        o, state = chunk_log_linear_attn(*part, state, True)
        outputs.append(o)
    assert final is not None
    assert state is not None
    assert_same([torch.cat(outputs, 1), state.ht], [expected, final.ht])
    assert torch.equal(state.offsets, final.offsets)
    assert torch.equal(state.k_prev, final.k_prev)


def test_gradients_reach_back_through_the_state():
    x = [y.requires_grad_() for y in log_linear_inputs(1, 200)]
    whole, _ = chunk_log_linear_attn(*x)
    first, second = zip(*(y.split((130, 70), 1) for y in x), strict=True)
    head, state = chunk_log_linear_attn(*first, None, True)
    tail, _ = chunk_log_linear_attn(*second, state)
    assert_same(gradients(torch.cat((head, tail), 1), x), gradients(whole, x))


def test_packed_log_linear_documents_equal_separate_ones_and_continue():
    x = log_linear_inputs(1, sum(LENGTHS))
    o, state = chunk_log_linear_attn(*x, None, True, EDGES)
    documents = list(zip(*(y.split(LENGTHS, 1) for y in x), strict=True))
    assert_same([o], [torch.cat([chunk_log_linear_attn(*d)[0] for d in documents], 1)], 1e-6)
    assert state is not None
    assert state.offsets.tolist() == list(LENGTHS)
    step = log_linear_inputs(1, len(LENGTHS))
    o, _ = chunk_log_linear_attn(*step, state, True, torch.arange(len(LENGTHS) + 1))
    longer = [
        chunk_log_linear_attn(*(torch.cat((a, b), 1) for a, b in zip(d, s, strict=True)))[0]
        for d, s in zip(documents, zip(*(y.split(1, 1) for y in step), strict=True), strict=True)
    ]
    assert_same([o], [torch.cat([y[:, -1:] for y in longer], 1)])


@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 50])
def test_deltaformer_equals_recurrence(tokens: int):
    x = [y.requires_grad_() for y in deltaformer_inputs(2, tokens)]
    o, expected = deltaformer_attn(*x, C=16), naive_deltaformer_attn(*x)
    kept = x[2:3] if tokens == 1 else x
    assert_same([o, *gradients(o, kept)], [expected, *gradients(expected, kept)])


def test_deltaformer_without_strengths_and_with_shared_keys():
    q, k, v, beta = deltaformer_inputs(2, 50)
    assert_same([deltaformer_attn(q, k, v)], [naive_deltaformer_attn(q, k, v)])
    k, v = k[:, :, :1], v[:, :, :1]
    expected = naive_deltaformer_attn(q, k.expand_as(q), v.expand_as(q), beta)
    assert_same([deltaformer_attn(q, k, v, beta)], [expected])


def test_packed_deltaformer_documents_equal_separate_ones():
    x = [y.requires_grad_() for y in deltaformer_inputs(1, sum(LENGTHS))]
    o = deltaformer_attn(*x, cu_seqlens=EDGES)
    documents = zip(*(y.split(LENGTHS, 1) for y in x), strict=True)
    expected = torch.cat([deltaformer_attn(*d) for d in documents], 1)
    assert_same([o, *gradients(o, x)], [expected, *gradients(expected, x)], 1e-5)


def test_deltaformer_padding_counts_for_nothing():
    x = deltaformer_inputs(2, 50)
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :13] = 0
    o = deltaformer_attn(*x, attention_mask=mask)
    assert_same([o[0:1, 13:]], [naive_deltaformer_attn(*(y[0:1, 13:] for y in x))])
    assert_same([o[1:]], [naive_deltaformer_attn(*(y[1:] for y in x))])
    assert not o[0, :13].any()


@pytest.mark.parametrize("name", ["log-linear", "deltaformer"])
def test_a_document_does_not_depend_on_its_neighbours_bits(name: str):
    inputs = {"log-linear": log_linear_inputs, "deltaformer": deltaformer_inputs}[name]

    def attend(x: Tensors) -> Tensor:
        if name == "deltaformer":
            return deltaformer_attn(*x, cu_seqlens=EDGES, C=deltaformer.BLOCK)
        return chunk_log_linear_attn(*x, cu_seqlens=EDGES)[0]

    x = inputs(1, sum(LENGTHS))
    mixed = [y.clone() for y in x]
    for y in mixed:
        y[:, :FIRST] = -torch.rand_like(y[:, :FIRST])
        y[:, LAST:] = -7.0
    o, changed = attend(x), attend(mixed)
    assert not torch.equal(changed[:, :FIRST], o[:, :FIRST])
    assert torch.equal(changed[:, FIRST:LAST], o[:, FIRST:LAST])
