"""Norms equal their references, gated, grouped and with projections."""

import pytest
import torch
import torch.nn.functional as F
from fla.modules.norm.layernorm import group_norm_ref, layer_norm_ref, rms_norm_ref
from fla.modules.norm.layernorm_gated import rms_norm_ref as gated_rms_norm_ref

from flame_accel.kernels.modules import (
    norm,
)
from tests.helpers.gradients import assert_same_results, randn_each


def test_norms_equal_references():
    x, residual, weight, bias = randn_each((2, 7, 24), (2, 7, 24), (24,), (24,))
    for ours, reference in ((norm.group_norm, layer_norm_ref), (norm.rms_norm, rms_norm_ref)):
        assert_same_results(
            lambda x, w, f=ours: f(x, w, None), lambda x, w, f=reference: f(x, w, None), [x, weight]
        )
        assert_same_results(
            lambda x, w, b, r, f=ours: f(x, w, b, r, prenorm=True),
            lambda x, w, b, r, f=reference: f(x, w, b, r, prenorm=True),
            [x, weight, bias, residual],
        )
    assert_same_results(
        lambda x: norm.rms_norm(x, None, None), lambda x: F.rms_norm(x, (24,), None, 1e-5), [x]
    )


@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_group_norm_equals_reference(is_rms_norm):
    x, weight, bias = randn_each((2, 7, 24), (24,), (24,))
    assert_same_results(
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
    x, g, weight = randn_each((2, 7, 3, 8), (2, 7, 3, 8), (8,))
    act = F.silu if gate == "swish" else torch.sigmoid
    assert_same_results(
        lambda x, g, w: norm.rms_norm_gated(x, g, w, None, gate),
        lambda x, g, w: rms_norm_ref(x, w, None, eps=1e-6) * act(g),
        [x, g, weight],
    )
    assert_same_results(
        lambda x, g, w: norm.layer_norm_gated(x, g, w, None, gate, prenorm=True, residual=x),
        lambda x, g, w: (layer_norm_ref(2 * x, w, None, eps=1e-6) * act(g), 2 * x),
        [x, g, weight],
    )


def test_norms_with_projection():
    x, g, weight, linear, bias = randn_each((2, 7, 8), (2, 7, 8), (8,), (5, 8), (5,))
    assert_same_results(
        lambda x, w, m, b: norm.layer_norm_linear(x, w, None, m, b, is_rms_norm=True),
        lambda x, w, m, b: F.linear(rms_norm_ref(x, w, None), m, b),
        [x, weight, linear, bias],
    )
    assert_same_results(
        lambda x, g, w, m: norm.rms_norm_swish_gate_linear(x, g, w, None, m, None),
        lambda x, g, w, m: F.linear(rms_norm_ref(x, w, None, eps=1e-6) * F.silu(g), m),
        [x, g, weight, linear],
    )
    assert_same_results(
        lambda x, g, w, m: norm.layer_norm_swish_gate_linear(x, g, w, None, m, None, prenorm=True),
        lambda x, g, w, m: (F.linear(layer_norm_ref(x, w, None, eps=1e-6) * F.silu(g), m), 1 * x),
        [x, g, weight, linear],
    )


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [None, 4])
def test_norms_of_mamba2_equal_reference(group_size, norm_before_gate):
    x, z, weight = randn_each((2, 7, 8), (2, 7, 8), (8,))
    options = {"group_size": group_size, "norm_before_gate": norm_before_gate}
    assert_same_results(
        lambda x, z, w: norm.rmsnorm_fn(x, w, None, z, **options),
        lambda x, z, w: gated_rms_norm_ref(x, w, None, z, **options),
        [x, z, weight],
    )


def test_l2norm():
    assert_same_results(
        lambda x: norm.l2norm(x), lambda x: F.normalize(x, dim=-1), randn_each((2, 7, 3, 8))
    )
    assert norm.l2norm(torch.randn(2, 8), output_dtype=torch.bfloat16).dtype == torch.bfloat16
