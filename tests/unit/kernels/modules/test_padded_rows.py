"""Rows of a padded batch are computed without their padding, with a cache and without."""

import pytest
import torch
from fla.models.cache_utils import Cache

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from flame_accel.kernels.modules.padded_rows import (
    check_no_padding_after_cached_tokens,
    forward_rows_without_padding,
    has_padding,
)
from tests.helpers.model_configs import tiny_generator

MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("abc", {}),
        ("abc", {"use_rope": True, "use_short_conv": True}),
        ("log_linear_mamba2", {}),
        ("wall_transformer", {}),
        ("wall_transformer", {"window_size": 16, "use_scalar_gate": True}),
    ],
)
@pytest.mark.parametrize("law", ["leaves padding out", "searches with beams"])
def test_layers_that_read_padding_are_given_none(law, model_type, changes):
    GENERATION_LAWS[law](tiny_generator(model_type, **changes))


def test_whether_a_mask_hides_a_token():
    assert not has_padding(None)
    assert has_padding(MASK) and not has_padding(MASK, 2) and not has_padding(MASK[1:])


def test_a_row_keeps_its_outputs_and_its_state():
    x, cache = torch.arange(8.0).view(2, 4, 1), Cache()
    cache.update(recurrent_state=torch.zeros(2, 1), layer_idx=0, offset=0)
    cache.update(recurrent_state=torch.zeros(2, 1), layer_idx=1, offset=4)

    def running_sum(row: torch.Tensor, row_cache: Cache) -> tuple[torch.Tensor, None, Cache]:
        past = row_cache[1]["recurrent_state"]
        o = past[:, None] + row.cumsum(1)
        row_cache.update(
            recurrent_state=o[:, -1], attn_state=(row,), layer_idx=1, offset=row.shape[1]
        )
        return o, None, row_cache

    mask = torch.cat((torch.ones(2, 4), MASK), 1)
    o, _, same = forward_rows_without_padding(running_sum, x, mask, cache, 1)
    assert same is cache
    assert o.flatten().tolist() == [0, 0, 2, 5, 4, 9, 15, 22]
    assert cache[1]["recurrent_state"].flatten().tolist() == [5, 22]
    # keys of the shorter row are on the right, as its tokens are in the batch
    assert cache[1]["attn_state"][0].squeeze(-1).tolist() == [[0, 0, 2, 3], [4, 5, 6, 7]]
    assert cache.get_seq_length(1) == 8


def test_a_row_of_padding_alone_is_refused():
    with pytest.raises(UserError, match="no token but padding"):
        forward_rows_without_padding(
            lambda row, cache: (row, None, cache), torch.ones(2, 2, 1), MASK[:, :2], None, 0
        )


def test_padding_after_cached_tokens_is_refused_only_there():
    layer = torch.nn.Identity()
    check_no_padding_after_cached_tokens(layer, MASK, 2, has_past=True)
    check_no_padding_after_cached_tokens(layer, MASK, 4, has_past=False)
    with pytest.raises(UserError, match="Identity cannot continue cached tokens"):
        check_no_padding_after_cached_tokens(layer, MASK, 3, has_past=True)
