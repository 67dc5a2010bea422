"""Mamba2's layer equals that of fla; caches; packed documents."""

import pytest
import torch
from fla.layers import Mamba2
from torch import nn

from flame_accel.kernels.recurrence import mamba2
from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import (
    assert_cached_tokens_equal_one_pass,
    assert_packed_documents_are_apart,
    fla_method,
    perturbed,
)

pytestmark = pytest.mark.usefixtures("torch_kernels")


def build_layer() -> nn.Module:
    return perturbed(
        lambda: Mamba2(hidden_size=32, head_dim=16, state_size=8, n_groups=2, layer_idx=0)
    )


def test_mamba2_layer_equals_that_of_fla():
    layer = Mamba2(hidden_size=32, head_dim=16, state_size=8, chunk_size=16, layer_idx=0)
    x = torch.randn(2, 70, 32)
    mask = torch.arange(70) >= torch.tensor([[0], [9]])
    original = fla_method(Mamba2, "forward")
    for options in ({}, {"attention_mask": mask}):
        results = [
            outputs_and_gradients(lambda x, f=f, o=options: f(layer, x, **o)[0], [x])
            for f in (mamba2.forward_mamba2_with_padding_masked, original)
        ]
        assert_close(*results, absolute=1e-12)


def test_layer_one_token_at_a_time_equals_one_pass():
    assert_cached_tokens_equal_one_pass(build_layer())


def test_layer_keeps_packed_documents_apart():
    assert_packed_documents_are_apart(build_layer())
