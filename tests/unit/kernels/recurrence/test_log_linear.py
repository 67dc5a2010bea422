"""Log-linear attention equals fla's reference and continues from its states; its layer."""

import pytest
import torch
from fla.layers.log_linear_mamba2 import LogLinearMamba2
from fla.ops.log_linear_attn.naive import naive_log_linear_attn
from torch import Tensor, nn

from flame_accel.kernels.recurrence import log_linear
from flame_accel.kernels.recurrence.log_linear import (
    chunk_log_linear_attn,
    run_triton_log_linear_attn_casting_level_scales,
)
from tests.helpers.gradients import assert_close
from tests.helpers.recurrence import (
    assert_cached_tokens_equal_one_pass,
    assert_every_parameter_gets_a_gradient,
    assert_packed_documents_are_apart,
    boundaries,
)

LENGTHS = (1, 40, 193, 1, 66, 5)
FIRST, LAST = 41, 234

Tensors = list[Tensor]


def draw_inputs(n: int, t: int) -> Tensors:
    """Queries and keys of 2 heads, values, log decays and weights of 10 levels of 4."""
    torch.manual_seed(t)
    q, k = torch.randn(2, n, t, 2, 8).unbind()
    g = -6 * torch.rand(n, t, 4) ** 8
    return [q, k, torch.randn(n, t, 4, 6), g, torch.rand(n, t, 4, 10)]


def gradients(o: Tensor, leaves: Tensors) -> Tensors:
    torch.manual_seed(0)
    return list(torch.autograd.grad((o * torch.randn(o.shape)).sum(), leaves))


@pytest.mark.parametrize("tokens", [2, 5, 64, 65, 128, 300])
def test_log_linear_attention_equals_matrix(tokens: int):
    x = [y.requires_grad_() for y in draw_inputs(2, tokens)]
    o, expected = chunk_log_linear_attn(*x)[0], naive_log_linear_attn(*x)
    assert_close([o, *gradients(o, x)], [expected, *gradients(expected, x)])


def test_first_token_reads_itself():
    q, k, v, _, levels = x = draw_inputs(2, 1)
    q, k = (y.repeat_interleave(2, 2) for y in (q, k))
    expected = (q * k).sum(-1, keepdim=True) * v * levels[..., :1] * 8**-0.5
    assert_close([chunk_log_linear_attn(*x, scale=None)[0]], [expected])


def test_kernels_get_weights_of_levels_in_the_dtype_of_queries(monkeypatch):
    monkeypatch.setattr(log_linear, "_triton_chunk_log_linear_attn", chunk_log_linear_attn)
    q, k, v, g, levels = draw_inputs(2, 70)
    x = [q.bfloat16(), k.bfloat16(), v.bfloat16(), g, levels.requires_grad_()]
    o, _ = run_triton_log_linear_attn_casting_level_scales(*x)
    [found] = gradients(o, x[4:])
    x[4] = levels.bfloat16()
    assert torch.equal(o, chunk_log_linear_attn(*x)[0])
    assert found.dtype == torch.float32
    assert found.norm() > 0


@pytest.mark.parametrize("cuts", [(37, 3, 1, 60, 199), (64, 64, 172), (256, 44), (1,) * 130])
def test_log_linear_attention_continues_where_it_stopped(cuts: tuple[int, ...]):
    x = [y[:, : sum(cuts)] for y in draw_inputs(2, 300)]
    expected, final = chunk_log_linear_attn(*x, output_final_state=True)
    state, outputs = None, []
    for part in zip(*(y.split(cuts, 1) for y in x), strict=True):
        o, state = chunk_log_linear_attn(*part, state, True)
        outputs.append(o)
    assert final is not None
    assert state is not None
    assert_close([torch.cat(outputs, 1), state.ht], [expected, final.ht])
    assert torch.equal(state.offsets, final.offsets)
    assert torch.equal(state.k_prev, final.k_prev)


def test_gradients_reach_back_through_the_state():
    x = [y.requires_grad_() for y in draw_inputs(1, 200)]
    whole, _ = chunk_log_linear_attn(*x)
    first, second = zip(*(y.split((130, 70), 1) for y in x), strict=True)
    head, state = chunk_log_linear_attn(*first, None, True)
    tail, _ = chunk_log_linear_attn(*second, state)
    assert_close(gradients(torch.cat((head, tail), 1), x), gradients(whole, x))


def test_packed_log_linear_documents_equal_separate_ones_and_continue():
    x = draw_inputs(1, sum(LENGTHS))
    o, state = chunk_log_linear_attn(*x, None, True, boundaries(LENGTHS))
    documents = list(zip(*(y.split(LENGTHS, 1) for y in x), strict=True))
    assert_close([o], [torch.cat([chunk_log_linear_attn(*d)[0] for d in documents], 1)], 1e-6)
    assert state is not None
    assert state.offsets.tolist() == list(LENGTHS)
    step = draw_inputs(1, len(LENGTHS))
    o, _ = chunk_log_linear_attn(*step, state, True, torch.arange(len(LENGTHS) + 1))
    longer = [
        chunk_log_linear_attn(*(torch.cat((a, b), 1) for a, b in zip(d, s, strict=True)))[0]
        for d, s in zip(documents, zip(*(y.split(1, 1) for y in step), strict=True), strict=True)
    ]
    assert_close([o], [torch.cat([y[:, -1:] for y in longer], 1)])


def test_a_document_does_not_depend_on_its_neighbours_bits():
    x = draw_inputs(1, sum(LENGTHS))
    mixed = [y.clone() for y in x]
    for y in mixed:
        y[:, :FIRST] = -torch.rand_like(y[:, :FIRST])
        y[:, LAST:] = -7.0
    o, _ = chunk_log_linear_attn(*x, cu_seqlens=boundaries(LENGTHS))
    changed, _ = chunk_log_linear_attn(*mixed, cu_seqlens=boundaries(LENGTHS))
    assert not torch.equal(changed[:, :FIRST], o[:, :FIRST])
    assert torch.equal(changed[:, FIRST:LAST], o[:, FIRST:LAST])


def build_layer() -> nn.Module:
    torch.manual_seed(0)
    return LogLinearMamba2(num_heads=2, head_dim=32, hidden_size=32, state_size=16, layer_idx=0)


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize("training", [True, False])
def test_layer_keeps_packed_documents_apart(training: bool):
    assert_packed_documents_are_apart(build_layer().train(training))


@pytest.mark.usefixtures("torch_kernels")
def test_cached_tokens_of_the_layer_equal_one_pass():
    assert_cached_tokens_equal_one_pass(build_layer().eval(), tokens=80, first=60)


@pytest.mark.usefixtures("torch_kernels")
def test_every_parameter_of_the_layer_gets_a_gradient():
    assert_every_parameter_gets_a_gradient(build_layer().train())
