"""Linear attention in chunks equals fla's token by token references: values and all gradients."""

from collections.abc import Callable

import pytest
import torch
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from torch import Tensor

from flame_accel.kernels.recurrence import gla

TOLERANCE = 1e-4
SHAPES = [
    pytest.param(2, 1, 2, 16, 8, id="one-token"),
    pytest.param(2, 5, 2, 8, 24, id="less-than-a-chunk"),
    pytest.param(2, 64, 3, 16, 8, id="whole-chunks"),
    pytest.param(1, 129, 2, 16, 24, id="one-token-more"),
    pytest.param(2, 300, 2, 24, 16, id="ragged-end"),
]
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda r: -0.1 * r,
    "none": lambda r: 0.0 * r,
    "medium": lambda r: -2.0 * r,
    "steady": lambda r: -3.0 - r,
    "all-strong": lambda r: -20.0 + 0.0 * r,
    "spread": lambda r: -20.0 * r.square(),
    "resets": lambda r: torch.where(r > 0.9, -20.0, -0.01 * r),
}


def inputs(batch: int, tokens: int, heads: int, keys: int, values: int, decay: str) -> list[Tensor]:
    """Queries, keys, values, log decays per channel, initial state."""
    torch.manual_seed(tokens)
    q, k = torch.randn(2, batch, tokens, heads, keys).unbind()
    v = torch.randn(batch, tokens, heads, values)
    g = DECAYS[decay](torch.rand(batch, tokens, heads, keys))
    return [q, k, v, g, torch.randn(batch, heads, keys, values)]


def run(function: Callable[..., tuple[Tensor, Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """Output, final state and all gradients of a random projection of both."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    o, state = function(*leaves)
    torch.manual_seed(0)
    projected = (o * torch.randn(o.shape)).sum() + (state * torch.randn(state.shape)).sum()
    return [o.detach(), state.detach(), *torch.autograd.grad(projected, leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * e.norm(), f"tensor {index}"


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [p.values for p in SHAPES], ids=[p.id for p in SHAPES])
def test_decay_per_channel_equals_recurrence(shape, decay):
    tensors = inputs(*shape, decay)
    expected = run(
        lambda q, k, v, g, h: naive_recurrent_gla(q, k, v, g, h, output_final_state=True), tensors
    )
    for function in (gla.chunk_gla, gla.fused_recurrent_gla):
        actual = run(
            lambda q, k, v, g, h, f=function: f(
                q, k, v, g, initial_state=h, output_final_state=True
            ),
            tensors,
        )
        assert_same(actual, expected)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [p.values for p in SHAPES], ids=[p.id for p in SHAPES])
def test_decay_per_head_equals_recurrence(shape, decay):
    q, k, v, g, h = inputs(*shape, decay)
    tensors = [q, k, v, g[..., 0].contiguous(), h]
    expected = run(
        lambda q, k, v, g, h: naive_recurrent_simple_gla(q, k, v, g, initial_state=h), tensors
    )
    actual = run(
        lambda q, k, v, g, h: gla.chunk_simple_gla(
            q, k, v, g, initial_state=h, output_final_state=True
        ),
        tensors,
    )
    assert_same(actual, expected)


@pytest.mark.parametrize("shape", [p.values for p in SHAPES], ids=[p.id for p in SHAPES])
def test_no_decay_equals_recurrence(shape):
    q, k, v, _, h = inputs(*shape, "none")
    expected = run(
        lambda q, k, v, h: naive_recurrent_linear_attn(
            q, k, v, initial_state=h, output_final_state=True
        ),
        [q, k, v, h],
    )
    actual = run(
        lambda q, k, v, h: gla.fused_chunk_simple_gla(
            q, k, v, initial_state=h, output_final_state=True
        ),
        [q, k, v, h],
    )
    assert_same(actual, expected)


LENGTHS = (1, 40, 93, 1, 66, 5)


@pytest.mark.parametrize("decay", ["mild", "spread", "resets"])
@pytest.mark.parametrize("per_head", [False, True], ids=["channel", "head"])
def test_packed_documents_equal_separate_ones(decay, per_head):
    q, k, v, g, _ = inputs(1, sum(LENGTHS), 2, 16, 24, decay)
    g = g[..., 0].contiguous() if per_head else g
    function = gla.chunk_simple_gla if per_head else gla.chunk_gla
    h = torch.randn(len(LENGTHS), 2, 16, 24)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)

    def packed(*tensors):
        *rest, h = tensors
        return function(*rest, initial_state=h, output_final_state=True, cu_seqlens=cu_seqlens)

    def separate(*tensors):
        *rest, h = tensors
        parts = zip(*(x.split(LENGTHS, 1) for x in rest), h.split(1), strict=True)
        outputs = [
            function(*part[:-1], initial_state=part[-1], output_final_state=True) for part in parts
        ]
        return torch.cat([o for o, _ in outputs], 1), torch.cat([s for _, s in outputs])

    assert_same(run(packed, [q, k, v, g, h]), run(separate, [q, k, v, g, h]), 1e-6)


@pytest.mark.parametrize("decay", ["mild", "resets"])
def test_a_document_does_not_depend_on_its_neighbours_bits(decay):
    q, k, v, g, _ = inputs(1, sum(LENGTHS), 2, 16, 24, decay)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    o, _ = gla.chunk_gla(q, k, v, g, cu_seqlens=cu_seqlens)
    first, last = 41, 134
    g[:, :first] = -20.0
    for x in (q, k, v):
        x[:, :first] = torch.randn_like(x[:, :first])
        x[:, last:] = 7.0
    changed, _ = gla.chunk_gla(q, k, v, g, cu_seqlens=cu_seqlens)
    assert not torch.equal(changed[:, :first], o[:, :first])
    assert torch.equal(changed[:, first:last], o[:, first:last])


def test_chunks_equal_one_token_at_a_time():
    q, k, v, g, h = inputs(2, 70, 2, 16, 24, "medium")
    expected, final = gla.chunk_gla(q, k, v, g, initial_state=h, output_final_state=True)
    outputs = []
    for t in range(q.shape[1]):
        now = slice(t, t + 1)
        o, h = gla.fused_recurrent_gla(
            q[:, now], k[:, now], v[:, now], g[:, now], initial_state=h, output_final_state=True
        )
        outputs.append(o)
    assert_same([torch.cat(outputs, 1), h], [expected, final], 1e-5)


def test_packed_single_tokens_take_the_recurrence():
    q, k, v, g, _ = inputs(1, 3, 2, 16, 24, "mild")
    h = torch.randn(3, 2, 16, 24)
    o, state = gla.chunk_gla(
        q, k, v, g, initial_state=h, output_final_state=True, cu_seqlens=torch.arange(4)
    )
    expected, final = gla.chunk_gla(
        *(x.transpose(0, 1) for x in (q, k, v, g)), initial_state=h, output_final_state=True
    )
    assert_same([o, state], [expected.transpose(0, 1), final], 1e-6)


def test_state_layout_and_direction():
    q, k, v, g, h = inputs(2, 45, 2, 16, 24, "mild")
    o, state = gla.chunk_gla(q, k, v, g, initial_state=h, output_final_state=True)
    o_v, state_v = gla.chunk_gla(
        q, k, v, g, initial_state=h.mT.contiguous(), output_final_state=True, state_v_first=True
    )
    assert_same([o_v, state_v], [o, state.mT], 1e-6)
    back = [x.flip(1) for x in (q, k, v, g)]
    o_r, state_r = gla.fused_recurrent_gla(
        *back, initial_state=h, output_final_state=True, reverse=True
    )
    assert_same([o_r.flip(1), state_r], [o, state], 1e-6)
    assert gla.chunk_gla(q, k, v, g)[1] is None


def test_reversed_packed_documents_equal_separate_ones():
    q, k, v, g, _ = inputs(1, sum(LENGTHS), 2, 16, 24, "mild")
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    o, state = gla.fused_recurrent_gla(
        q, k, v, g, output_final_state=True, reverse=True, cu_seqlens=cu_seqlens
    )
    parts = zip(*(x.split(LENGTHS, 1) for x in (q, k, v, g)), strict=True)
    outputs = [gla.fused_recurrent_gla(*p, output_final_state=True, reverse=True) for p in parts]
    expected = [torch.cat([x[0] for x in outputs], 1), torch.cat([x[1] for x in outputs])]
    assert_same([o, state], expected, 1e-6)


def test_outputs_keep_dtypes_under_autocast():
    q, k, v, g, h = inputs(2, 45, 2, 16, 24, "mild")
    q, k, v = (x.bfloat16().requires_grad_() for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        o, state = gla.chunk_gla(q, k, v, g, initial_state=h, output_final_state=True)
        (o.float().sum() + state.sum()).backward()
    expected, final = gla.chunk_gla(
        q.float(), k.float(), v.float(), g, initial_state=h, output_final_state=True
    )
    assert (o.dtype, state.dtype, q.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert_same([o.float(), state], [expected, final], 5e-3)


def test_same_bits_every_time():
    tensors = inputs(2, 129, 2, 16, 24, "spread")
    results = [
        run(lambda q, k, v, g, h: gla.chunk_gla(q, k, v, g, None, h, True), tensors)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_constant_decay_and_parallel_form_equal_references():
    q, k, v, _, _ = inputs(2, 70, 4, 16, 24, "none")
    gamma = (1 - 2.0 ** (-5.0 - torch.arange(4))).log()
    expected = naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    for function in (gla.chunk_simple_gla, gla.fused_recurrent_simple_gla):
        assert_same([function(q, k, v, g_gamma=gamma)[0]], [expected])
    g = gamma.expand(2, 70, 4)
    assert_same([gla.parallel_simple_gla(q, k, v, g)[0]], [expected])


@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum_restarts_with_every_document(reverse):
    x = torch.randn(1, sum(LENGTHS), 2, 3)
    parts = [p.flip(1).cumsum(1).flip(1) if reverse else p.cumsum(1) for p in x.split(LENGTHS, 1)]
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    actual = gla.chunk_global_cumsum(x, reverse=reverse, cu_seqlens=cu_seqlens, scale=2.0)
    assert_same([actual], [2 * torch.cat(parts, 1)], 1e-6)
