"""RWKV7's recurrence and fused functions equal fla's references: values and all gradients."""

import pytest
import torch
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.rwkv7.channel_mixing import channel_mixing_rwkv7_torch
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import k_update_ref
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref

from flame_accel.kernels.recurrence import rwkv7
from tests.helpers.gradients import assert_close, assert_same_results, outputs_and_gradients
from tests.helpers.recurrence import (
    B,
    H,
    K,
    T,
    V,
    head_first,
    unit,
)

FINAL = {"output_final_state": True}


@pytest.mark.parametrize("name", ["chunk_rwkv7", "fused_mul"])
def test_rwkv7_equals_recurrence(qkv, name):
    r, k, v, _, h = qkv
    w, kk, a = -0.6065 * torch.rand(B, T, H, K), unit(B, T, H, K), torch.rand(B, T, H, K)

    def ours(r, w, k, v, kk, a, h):
        options = {"scale": K**-0.5, "initial_state": h, **FINAL}
        if name == "fused_mul":
            return rwkv7.fused_mul_recurrent_rwkv7(r, w, k, v, kk, a, **options)
        return getattr(rwkv7, name)(r, w, k, v, -kk, kk * a, **options)

    def theirs(r, w, k, v, kk, a, h):
        return head_first(dplr_recurrence)(r, k, v, -kk, kk * a, w, h)

    assert_same_results(ours, theirs, [r, w, k, v, kk, a, h], tolerance=1e-4)


def test_fused_functions_equal_references(qkv):
    torch.manual_seed(5)
    x, delta = torch.randn(2, B, T, K).unbind()
    mixes = [torch.randn(1, 1, K) for _ in range(6)]
    assert_same_results(
        rwkv7.fused_addcmul_rwkv7, torch_addcmul_rwkv7, [x, delta, *mixes], tolerance=1e-4
    )
    assert rwkv7.fused_addcmul_rwkv7(x, delta, *mixes[:5])[-1] is None
    assert_same_results(
        rwkv7.fused_k_rwkv7, k_update_ref, [x, delta, torch.randn(K)], tolerance=1e-4
    )
    r, k, v, *_ = qkv
    o, g = torch.randn(2, B, T, H * V).unbind()
    tensors = [o, r, k, torch.randn(H, K), v, g]
    assert_same_results(
        rwkv7.gate_output_correction, gate_output_correction_ref, tensors, tolerance=1e-4
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_channel_mixing_equals_reference_and_leaves_its_inputs(dim):
    torch.manual_seed(7)
    previous = torch.randn(B, K) if dim == 2 else torch.randn(B, 1, K)
    tensors = [torch.randn(B, T, K), previous, torch.randn(1, 1, K), torch.randn(K, V)]
    tensors.append(torch.randn(V, K))
    before = [x.clone() for x in tensors]
    assert_same_results(
        rwkv7.channel_mixing_rwkv7, channel_mixing_rwkv7_torch, tensors, tolerance=1e-4
    )
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize("name", ["addcmul", "k", "gate"])
def test_fused_functions_round_bfloat16_once(name):
    torch.manual_seed(6)
    shapes = {
        "addcmul": [(B, T, K), (B, T, K), *[(1, 1, K)] * 6],
        "k": [(B, T, K), (B, T, K), (K,)],
        "gate": [(B, T, H * V), (B, T, H, V), (B, T, H, V), (H, V), (B, T, H, V), (B, T, H * V)],
    }
    function = {
        "addcmul": rwkv7.fused_addcmul_rwkv7,
        "k": rwkv7.fused_k_rwkv7,
        "gate": rwkv7.gate_output_correction,
    }[name]
    tensors = [torch.randn(shape).bfloat16() for shape in shapes[name]]
    rounded = outputs_and_gradients(function, tensors)
    exact = outputs_and_gradients(function, [x.float() for x in tensors])
    for found, expected in zip(rounded, exact, strict=True):
        assert found.dtype == torch.bfloat16
        # a gradient also depends on outputs' gradients, which are rounded
        assert_close([found.float()], [expected], 4e-3)
