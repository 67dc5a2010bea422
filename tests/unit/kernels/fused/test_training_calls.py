"""Which calls of a layer the fused layers take."""

import pytest
import torch
from torch import nn

from flame_accel.kernels.fused.training_calls import (
    are_whole_parameters,
    is_unpadded_training_call,
)

X = torch.zeros(1, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "taken"),
    [
        ((X,), {}, True),
        ((X, None, None, False), {"cu_seqlens": torch.tensor([0, 4])}, True),
        ((X, torch.ones(1, 4)), {}, False),
        ((X,), {"past_key_values": object()}, False),
        ((X,), {"use_cache": True}, False),
        ((X[:, :1],), {}, False),
        ((X[:0],), {}, False),
    ],
)
def test_calls_with_padding_or_a_cache_or_of_one_token_are_left_to_fla(arguments, options, taken):
    assert is_unpadded_training_call(*arguments, **options) is taken
    with torch.no_grad():
        assert not is_unpadded_training_call(*arguments, **options)


def test_weights_that_are_gathered_or_adapted_are_not_whole():
    weight, gathered = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    gathered.ds_id = 0
    assert are_whole_parameters([weight, None])
    assert not are_whole_parameters([weight, gathered])
    assert not are_whole_parameters([weight, torch.ones(2)])
