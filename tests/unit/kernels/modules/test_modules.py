"""The fused modules in PyTorch equal what they are fusions of: values and all gradients."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fla.modules.l2warp import l2_warp
from fla.modules.norm.layernorm import group_norm_ref, layer_norm_ref, rms_norm_ref
from fla.modules.norm.layernorm_gated import rms_norm_ref as gated_rms_norm_ref
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.ops.attnres.naive import naive_attnres
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules import activation, attnres, convolution, loss, norm, rotary

TOLERANCE = 1e-5


def check(
    actual: Callable[..., Any], expected: Callable[..., Any], tensors: Sequence[Tensor]
) -> None:
    """Both functions give the same values and, through a random projection, the same gradients."""
    results = []
    for function in (actual, expected):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        values = function(*leaves)
        values = values if isinstance(values, tuple) else (values,)
        torch.manual_seed(0)
        projected = torch.stack([(x * torch.randn(x.shape)).sum() for x in values]).sum()
        results.append([*values, *torch.autograd.grad(projected, leaves)])
    for index, (a, e) in enumerate(zip(*results, strict=True)):
        assert a.shape == e.shape
        assert (a - e).norm() <= TOLERANCE * e.norm(), f"tensor {index}"


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape) for shape in shapes]


def test_norms_equal_references():
    x, residual, weight, bias = draw((2, 7, 24), (2, 7, 24), (24,), (24,))
    for ours, reference in ((norm.layer_norm, layer_norm_ref), (norm.rms_norm, rms_norm_ref)):
        check(
            lambda x, w, f=ours: f(x, w, None), lambda x, w, f=reference: f(x, w, None), [x, weight]
        )
        check(
            lambda x, w, b, r, f=ours: f(x, w, b, r, prenorm=True),
            lambda x, w, b, r, f=reference: f(x, w, b, r, prenorm=True),
            [x, weight, bias, residual],
        )
    check(lambda x: norm.rms_norm(x, None, None), lambda x: F.rms_norm(x, (24,), None, 1e-5), [x])


@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_group_norm_equals_reference(is_rms_norm):
    x, weight, bias = draw((2, 7, 24), (24,), (24,))
    check(
        lambda x, w, b: norm.group_norm(x, w, b, is_rms_norm=is_rms_norm, num_groups=3),
        lambda x, w, b: group_norm_ref(x, w, b, num_groups=3, is_rms_norm=is_rms_norm),
        [x, weight, bias],
    )


def test_residual_keeps_its_dtype():
    x = torch.randn(3, 8).bfloat16()
    y, kept = norm.rms_norm(x, torch.ones(8), None, prenorm=True, residual_in_fp32=True)
    assert (y.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    y, kept = norm.rms_norm(x, torch.ones(8), None, residual=torch.zeros(3, 8), prenorm=True)
    assert (y.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    _, kept = norm.rms_norm(x, torch.ones(8), None, prenorm=True)
    assert kept is x


@pytest.mark.parametrize("gate", ["swish", "sigmoid"])
def test_gated_norms_are_norm_times_gate(gate):
    x, g, weight = draw((2, 7, 3, 8), (2, 7, 3, 8), (8,))
    act = F.silu if gate == "swish" else torch.sigmoid
    check(
        lambda x, g, w: norm.rms_norm_gated(x, g, w, None, gate),
        lambda x, g, w: rms_norm_ref(x, w, None, eps=1e-6) * act(g),
        [x, g, weight],
    )
    check(
        lambda x, g, w: norm.layer_norm_gated(x, g, w, None, gate, prenorm=True, residual=x),
        lambda x, g, w: (layer_norm_ref(2 * x, w, None, eps=1e-6) * act(g), 2 * x),
        [x, g, weight],
    )


def test_norms_with_projection():
    x, g, weight, linear, bias = draw((2, 7, 8), (2, 7, 8), (8,), (5, 8), (5,))
    check(
        lambda x, w, m, b: norm.layer_norm_linear(x, w, None, m, b, is_rms_norm=True),
        lambda x, w, m, b: F.linear(rms_norm_ref(x, w, None), m, b),
        [x, weight, linear, bias],
    )
    check(
        lambda x, g, w, m: norm.rms_norm_swish_gate_linear(x, g, w, None, m, None),
        lambda x, g, w, m: F.linear(rms_norm_ref(x, w, None, eps=1e-6) * F.silu(g), m),
        [x, g, weight, linear],
    )
    check(
        lambda x, g, w, m: norm.layer_norm_swish_gate_linear(x, g, w, None, m, None, prenorm=True),
        lambda x, g, w, m: (F.linear(layer_norm_ref(x, w, None, eps=1e-6) * F.silu(g), m), 1 * x),
        [x, g, weight, linear],
    )


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [None, 4])
def test_norms_of_mamba2_equal_reference(group_size, norm_before_gate):
    x, z, weight = draw((2, 7, 8), (2, 7, 8), (8,))
    options = {"group_size": group_size, "norm_before_gate": norm_before_gate}
    check(
        lambda x, z, w: norm.rmsnorm_fn(x, w, None, z, **options),
        lambda x, z, w: gated_rms_norm_ref(x, w, None, z, **options),
        [x, z, weight],
    )


def test_l2norm():
    check(lambda x: norm.l2norm(x), lambda x: F.normalize(x, dim=-1), draw((2, 7, 3, 8)))
    assert norm.l2norm(torch.randn(2, 8), output_dtype=torch.bfloat16).dtype == torch.bfloat16


LENGTHS = (1, 9, 2, 12, 1)
CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0)


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    width = weight.shape[1]
    whole = torch.cat((state, x.mT), -1)
    y = F.conv1d(whole[..., 1:], weight.unsqueeze(1), bias, groups=weight.shape[0])
    return F.silu(y).mT, whole[..., -width:]


@pytest.mark.parametrize("tokens", [1, 2, 3, 20])
def test_convolution_equals_reference(tokens):
    tensors = draw((2, tokens, 6), (6, 4), (6,), (2, 6, 4))
    options = {"activation": "silu", "output_final_state": True}
    check(
        lambda x, w, b, s: convolution.causal_conv1d(x, w, b, initial_state=s, **options),
        # the oldest input of a state is not in reach of the filter
        conv_reference,
        tensors,
    )


def test_convolution_starts_at_zero_and_adds_the_residual_last():
    x, weight = draw((2, 9, 6), (6, 4))
    zeros = torch.zeros(2, 6, 4)
    check(
        lambda x, w: convolution.causal_conv1d(x, w, residual=x, activation="silu")[0],
        lambda x, w: conv_reference(x, w, torch.zeros(6), zeros)[0] + x,
        [x, weight],
    )


@pytest.mark.parametrize("with_state", [False, True])
def test_convolution_of_packed_documents_equals_separate_ones(with_state):
    x, weight, bias, state = draw((1, sum(LENGTHS), 6), (6, 4), (6,), (len(LENGTHS), 6, 4))
    options = {"activation": "swish", "output_final_state": True}
    tensors = [x, weight, bias, *([state] if with_state else [])]

    def separate(x: Tensor, w: Tensor, b: Tensor, *state: Tensor) -> tuple[Tensor, Tensor]:
        states = state[0].split(1) if state else [None] * len(LENGTHS)
        parts = [
            convolution.causal_conv1d(part, w, b, initial_state=s, **options)
            for part, s in zip(x.split(LENGTHS, 1), states, strict=True)
        ]
        return torch.cat([y for y, _ in parts], 1), torch.cat([s for _, s in parts])

    check(
        lambda x, w, b, *s: convolution.causal_conv1d(
            x, w, b, initial_state=s[0] if s else None, cu_seqlens=CU_SEQLENS, **options
        ),
        separate,
        tensors,
    )


@pytest.mark.parametrize("shape", [(3, 1, 6), (1, 3, 6), (3, 6)], ids=str)
def test_convolution_steps_equal_the_whole(shape):
    x, weight, bias = draw((3, 9, 6), (6, 4), (6,))
    expected, final = convolution.causal_conv1d(
        x, weight, bias, residual=x, activation="silu", output_final_state=True
    )
    cache = torch.zeros(3, 6, 4)
    for t in range(9):
        token = x[:, t].reshape(shape)
        y, returned = convolution.causal_conv1d_update(
            token, cache, residual=token, weight=weight, bias=bias, activation="silu"
        )
        assert y.shape == shape
        assert torch.allclose(y.reshape(3, 6), expected[:, t], atol=1e-6)
    assert returned is cache
    assert torch.equal(cache, final)


def test_activations():
    x, y, weight, bias = draw((3, 5), (3, 5), (4, 5), (4,))
    check(activation.sigmoid, torch.sigmoid, [x])
    check(activation.swish, F.silu, [x])
    check(activation.sqrelu, lambda x: x.clamp_min(0) ** 2, [x])
    check(activation.gelu, lambda x: F.gelu(x, approximate="tanh"), [x])
    check(activation.bias_gelu, lambda x, y: F.gelu(x + y, approximate="tanh"), [x, y])
    check(lambda x: activation.logsigmoid(x, 4.0), lambda x: F.logsigmoid(x) / 4, [x])
    check(activation.swiglu, lambda x, y: F.silu(x) * y, [x, y])
    check(activation.sigmoidglu, lambda x, y: torch.sigmoid(x) * y, [x, y])
    check(
        activation.swiglu_linear,
        lambda x, y, w, b: (F.silu(x) * y) @ w.T + b,
        [x, y, weight, bias],
    )


def test_powglu_is_a_power_above_zero_and_swish_below():
    x, y = draw((3, 5), (3, 5))
    up, down = x.abs() + 0.1, -x.abs()
    check(
        activation.powglu,
        lambda x, y: x ** (3 / (x.sqrt() + 1)) * torch.sigmoid(x) * y,
        [up, y],
    )
    check(activation.powglu, lambda x, y: F.silu(x) * y, [down, y])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_equals_reference(interleaved):
    (x,) = draw((2, 7, 3, 10))
    angle = torch.arange(12)[:, None] / 10000 ** (torch.arange(4) / 4)
    cos, sin = angle.cos(), angle.sin()
    check(
        lambda x: rotary.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=2),
        lambda x: rotary_embedding_ref(x, cos[2:9], sin[2:9], interleaved),
        [x],
    )
    offsets = torch.tensor([3, 0])
    y = rotary.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=offsets)
    expected = [
        rotary_embedding_ref(x[i : i + 1], cos[o : o + 7], sin[o : o + 7], interleaved)
        for i, o in enumerate(offsets.tolist())
    ]
    assert torch.allclose(y, torch.cat(expected), atol=1e-6)


def test_rotary_restarts_with_every_document():
    (x,) = draw((1, 7, 3, 8))
    angle = torch.arange(12)[:, None] / 10000 ** (torch.arange(4) / 4)
    cos, sin = angle.cos(), angle.sin()
    cu_seqlens, offsets = torch.tensor([0, 3, 7]), torch.tensor([-1, 2])
    y = rotary.rotary_embedding(x, cos, sin, seqlen_offsets=offsets, cu_seqlens=cu_seqlens)
    second = rotary.rotary_embedding(x[:, 3:], cos, sin, seqlen_offsets=2)
    assert torch.equal(y[:, 3:], second)
    # a token at position -1 is padding
    assert not y[0, 0].any()
    assert torch.equal(y[:, 1:3], rotary.rotary_embedding(x[:, 1:3], cos, sin))


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float, cap: float | None) -> Tensor:
    z = logits if cap is None else cap * torch.tanh(logits / cap)
    return F.cross_entropy(z, target, label_smoothing=smoothing, reduction="none")


TARGET = torch.tensor([3, -100, 0, 10, 5, -100, 7])


@pytest.mark.parametrize(("smoothing", "cap"), [(0.0, None), (0.1, 2.0)])
def test_cross_entropy(smoothing, cap):
    (logits,) = draw((7, 11))
    check(
        lambda x: loss.cross_entropy_loss(x, TARGET, smoothing, logit_softcapping=cap)[0],
        lambda x: cross_entropy(x, TARGET, smoothing, cap),
        [logits],
    )
    total, z = loss.cross_entropy_loss(logits, TARGET, smoothing, 0.5, 0.01)
    z_expected = 0.01 * (0.5 * logits).logsumexp(-1) ** 2 * (TARGET >= 0)
    assert torch.allclose(z, z_expected)
    assert torch.allclose(total, cross_entropy(0.5 * logits, TARGET, smoothing, None) + z)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_module(reduction):
    (logits,) = draw((7, 11))
    module = SimpleNamespace(
        label_smoothing=0.0,
        logit_scale=1.0,
        lse_square_scale=0.0,
        logit_softcapping=None,
        ignore_index=-100,
        process_group=None,
        reduction=reduction,
        return_z_loss=False,
    )
    check(
        lambda x: loss.forward_cross_entropy(module, x, TARGET),
        lambda x: F.cross_entropy(x, TARGET, reduction=reduction),
        [logits],
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("warped", [False, True])
def test_linear_cross_entropy_in_rows_equals_all_logits(reduction, warped, monkeypatch):
    # three rows at a time
    monkeypatch.setattr(loss, "LOGITS", 33)
    x, weight, bias = draw((7, 6), (11, 6), (11,))

    def whole(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        logits = F.linear(x, w, b)
        total = F.cross_entropy(logits, TARGET, label_smoothing=0.1, reduction=reduction)
        return l2_warp(total, logits.unsqueeze(0)) if warped else total

    check(
        lambda x, w, b: loss.fused_linear_cross_entropy_loss(
            x, TARGET, w, b, label_smoothing=0.1, reduction=reduction, use_l2warp=warped
        ),
        whole,
        [x, weight, bias],
    )
    with torch.no_grad():
        plain = loss.fused_linear_cross_entropy_loss(x, TARGET, weight, bias, reduction=reduction)
    assert torch.allclose(plain, F.cross_entropy(x @ weight.T + bias, TARGET, reduction=reduction))


def test_shared_vocabulary_is_refused():
    with pytest.raises(UserError, match="tensor_parallel_degree"):
        loss.cross_entropy_loss(torch.zeros(1, 2), torch.zeros(1).long(), process_group=object())


def test_attnres_equals_reference():
    query, weight, output_weight, *residuals = draw((8,), (8,), (8,), (2, 7, 8), (2, 7, 8))
    for output in (None, output_weight):
        check(
            lambda q, w, *r, o=output: attnres.fused_attnres(q, r, w, o, return_weights=True),
            lambda q, w, *r, o=output: naive_attnres(q, r, w, o, return_weights=True),
            [query, weight, *residuals],
        )
