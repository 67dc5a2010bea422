"""A mask that does not fit what it is used for is refused."""

import pytest
import torch

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.unpadding import (
    check_mask_fits_states_and_rows_nonempty_then_unpad,
    check_rows_nonempty_and_get_unpad_indices_and_cu,
)
from tests.helpers.model_configs import tiny_generator

MASK = torch.tensor([[0, 0, 1], [1, 1, 1]])


def test_tokens_of_a_mask_that_fits_are_gathered():
    indices, cu_seqlens = check_rows_nonempty_and_get_unpad_indices_and_cu(MASK)
    assert indices.tolist() == [2, 3, 4, 5] and cu_seqlens.tolist() == [0, 1, 4]
    x = torch.arange(6).view(2, 3, 1)
    q, (k,), *_ = check_mask_fits_states_and_rows_nonempty_then_unpad(x, (x,), MASK, 3)
    assert q.flatten().tolist() == k.flatten().tolist() == [2, 3, 4, 5]


def test_a_row_without_a_token_is_refused():
    with pytest.raises(UserError, match="no token but padding"):
        check_rows_nonempty_and_get_unpad_indices_and_cu(MASK[:, :2])
    assert check_rows_nonempty_and_get_unpad_indices_and_cu(MASK, 1)[0].tolist() == [0, 1]
    x = torch.zeros(2, 2, 1)
    with pytest.raises(UserError, match="no token but padding"):
        check_mask_fits_states_and_rows_nonempty_then_unpad(x, (x,), MASK[:, :2], 2)


def test_a_mask_of_another_length_than_the_keys_is_refused():
    x = torch.zeros(2, 2, 1)
    with pytest.raises(UserError, match="a mask of 3 tokens for 2 cached ones"):
        check_mask_fits_states_and_rows_nonempty_then_unpad(x, (x,), MASK, 2)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("transformer", {}),
        ("mla", {}),
        ("moba", {}),
        ("nsa", {}),
        ("transformer", {"window_size": 8}),
        ("bitnet", {"window_size": 8}),
        ("parallax", {"window_size": 8}),
        ("rodimus", {"ska_attn": {"num_heads": 2, "window_size": 8}}),
        ("mamba", {}),
        ("mamba2", {}),
        ("mamba3", {}),
        ("retnet", {}),
    ],
)
def test_a_padded_batch_that_a_layer_cannot_continue_is_refused(model_type, changes):
    model = tiny_generator(model_type, **changes)
    ids = torch.randint(256, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.long)
    # as many tokens as the window, and padding among the cached and the new ones
    mask[0, :14] = 0
    mask[0, 3] = 1
    cache = model(input_ids=ids[:, :12], attention_mask=mask[:, :12]).past_key_values
    with pytest.raises(UserError, match="padd"):
        model(input_ids=ids[:, 12:], attention_mask=mask, past_key_values=cache)


def test_cyclic_flow_attention_refuses_a_row_without_a_token():
    model = tiny_generator("cyclic_flow_attention")
    ids = torch.randint(256, (2, 5))
    with pytest.raises(UserError, match="no token but padding"):
        model(input_ids=ids, attention_mask=torch.tensor([[0] * 5, [1] * 5]))
