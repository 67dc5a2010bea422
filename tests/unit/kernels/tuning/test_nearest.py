"""Candidates of a kernel without a configuration are ranked by what similar shapes run with."""

import pytest

pytest.importorskip("triton")

from triton import Config

from flame_accel.kernels.tuning.nearest import (
    KeyDistance,
    blocks_fit_dimensions,
    config_to_fla_dict,
    key_distance_unless_lengths_differ,
    sort_candidates_by_block_fit_then_nearness,
)
from flame_accel.kernels.tuning.tuned_configs import TunedEntry

BF16, FP32, INT32 = "torch.bfloat16", "torch.float32", "torch.int32"
KEY = [64, True, 128, 256, BF16, FP32, INT32]


@pytest.mark.parametrize(
    "other, expected",
    [
        (KEY, KeyDistance(0, 0.0, 0)),
        ([64, True, 64, 256, BF16, FP32, INT32], KeyDistance(0, 1.0, 0)),
        ([64, True, 256, 64, BF16, FP32, INT32], KeyDistance(0, 3.0, 0)),
        ([64, False, 128, 256, BF16, FP32, INT32], KeyDistance(1, 0.0, 0)),
        ([64, True, 128, 256, BF16, BF16, INT32], KeyDistance(2, 0.0, 0)),
        ([64, True, 128, 256, BF16, FP32], KeyDistance(0, 0.0, 1)),
        ([64, True, 128, None, BF16, FP32, INT32], KeyDistance(1, 0.0, 0)),
        # a flag is no size, though Python says True == 1
        ([64, 1, 128, 256, BF16, FP32, INT32], KeyDistance(1, 0.0, 0)),
        ([64, True, 128, BF16, FP32, INT32], None),
    ],
)
def test_the_distance_of_two_keys(other, expected):
    assert key_distance_unless_lengths_differ(KEY, other) == expected
    assert key_distance_unless_lengths_differ(other, KEY) == expected


def test_flags_and_dtypes_count_before_sizes_and_sizes_before_index_tensors():
    assert KeyDistance(0, 9.0, 2) < KeyDistance(1, 0.0, 0)
    assert KeyDistance(0, 1.0, 2) < KeyDistance(0, 2.0, 0)


@pytest.mark.parametrize(
    "blocks, sizes, fits",
    [
        ({"BK": 64}, {"K": 64}, True),
        ({"BK": 64}, {"K": 48}, True),
        ({"BK": 64}, {"K": 32}, False),
        ({"BK": 32, "BV": 128}, {"K": 32, "V": 64}, False),
        # the narrowest block of a matrix product serves heads of any size
        ({"BK": 16}, {"K": 4}, True),
        ({"BK": 64}, {}, True),
        ({"B": 1024, "DOT_PRECISION": "ieee"}, {"D": 64}, True),
    ],
)
def test_a_block_is_no_wider_than_the_dimension_that_it_cuts(blocks, sizes, fits):
    assert blocks_fit_dimensions(blocks, sizes) == fits


CANDIDATES = [Config({"BK": block}, num_warps=warps) for block in (32, 64, 128) for warps in (2, 4)]


def entry(width: int, block: int, warps: int) -> TunedEntry:
    config = config_to_fla_dict(Config({"BK": block}, num_warps=warps))
    return TunedEntry([width, BF16], config)


def ranked(width: int, entries: list[TunedEntry]) -> list[tuple[int, int]]:
    ranking = sort_candidates_by_block_fit_then_nearness(
        CANDIDATES, entries, (width, BF16), {"K": width}
    )
    assert sorted(map(id, ranking)) == sorted(map(id, CANDIDATES))
    return [(config.kwargs["BK"], config.num_warps) for config in ranking]


def test_the_nearest_configurations_come_first_and_then_the_authors_order():
    entries = [entry(512, 128, 2), entry(64, 64, 4)]
    assert ranked(128, entries) == [(64, 4), (128, 2), (32, 2), (32, 4), (64, 2), (128, 4)]
    assert ranked(256, entries)[:2] == [(128, 2), (64, 4)]


def test_blocks_that_are_too_wide_come_last():
    entries = [entry(512, 128, 2), entry(256, 32, 4)]
    assert ranked(64, entries) == [(32, 4), (32, 2), (64, 2), (64, 4), (128, 2), (128, 4)]


def test_a_configuration_that_is_no_candidate_is_ignored():
    assert ranked(128, [entry(128, 256, 8)]) == [(c.kwargs["BK"], c.num_warps) for c in CANDIDATES]
