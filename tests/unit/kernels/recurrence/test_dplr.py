"""DPLR and IPLR delta rules equal fla's references: values and all gradients."""

import pytest
import torch
from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.generalized_delta_rule.iplr.naive import iplr_recurrence

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence import dplr
from tests.helpers.gradients import assert_same_results
from tests.helpers.recurrence import (
    B,
    H,
    K,
    T,
    head_first,
    unit,
)

FINAL = {"output_final_state": True}


@pytest.mark.parametrize("reverse", [False, True])
def test_dplr_equals_recurrence(qkv, reverse):
    q, k, v, _, h = qkv
    a = unit(B, T, H, K)
    tensors = [q, k, v, a, -a * torch.rand(B, T, H, K), -torch.rand(B, T, H, K), h]

    def ours(*x):
        return dplr.fused_recurrent_dplr_delta_rule(
            *x[:-1], initial_state=x[-1], reverse=reverse, **FINAL
        )

    def theirs(*x):
        x = [z.flip(1) for z in x[:-1]] + [x[-1]] if reverse else x
        o, state = head_first(dplr_recurrence)(*x)
        return o.flip(1) if reverse else o, state

    assert_same_results(ours, theirs, tensors, tolerance=1e-4)


def test_reversed_packed_documents_equal_separate_ones(qkv):
    q, k, v, _, h = (x[:1] for x in qkv)
    a, lengths = unit(1, T, H, K), (1, 33, 11)
    tensors = [q, k, v, a, -0.5 * a, -torch.rand(1, T, H, K)]
    h = torch.cat((h, -h, 2 * h))

    def call(tensors, h, cu_seqlens=None):
        return dplr.fused_recurrent_dplr_delta_rule(
            *tensors, initial_state=h, reverse=True, cu_seqlens=cu_seqlens, **FINAL
        )

    o, state = call(tensors, h, torch.tensor([0, *lengths]).cumsum(0))
    parts = zip(*(x.split(lengths, 1) for x in tensors), strict=True)
    outputs = [call(part, h[i : i + 1]) for i, part in enumerate(parts)]
    torch.testing.assert_close(o, torch.cat([x[0] for x in outputs], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, torch.cat([x[1] for x in outputs]), atol=1e-5, rtol=1e-5)


def test_iplr_equals_recurrence(qkv):
    q, k, v, _, h = qkv
    a = unit(B, T, H, K)
    assert_same_results(
        lambda *x: dplr.chunk_iplr_delta_rule(*x[:-1], initial_state=x[-1], **FINAL),
        head_first(iplr_recurrence),
        [q, k, v, a, -a * torch.rand(B, T, H, K), h],
        tolerance=1e-4,
    )


def test_context_parallelism_is_refused(qkv):
    q, k, v, _, _ = qkv
    with pytest.raises(UserError, match="cp_context"):
        chunk_dplr_delta_rule(q, k, v, k, k, k, cp_context=object())
