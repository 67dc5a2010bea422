"""Kernels that ptxas breaks are launched with too few warps for the instructions it breaks."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from flame_accel.kernels.tuning.warps import choose_safe_num_warps, without_wgmma_of_narrow_heads


@pytest.mark.parametrize(
    "launch, warps",
    [
        ({"BK": 16, "num_warps": 4}, 2),
        ({"BK": 32, "num_warps": 8}, 2),
        ({"BK": 32}, 2),
        ({"BK": 64, "num_warps": 8}, 8),
        ({"BK": 64}, 4),
    ],
)
def test_only_narrow_blocks_have_fewer_warps_than_asked_for(launch, warps):
    assert choose_safe_num_warps(launch) == warps


@pytest.mark.parametrize(
    "launch, capability, warps",
    [
        ({"K": 32, "V": 64}, "sm_90", [1, 2]),
        ({"V": 16, "BV": 16}, "sm_90", [1, 2]),
        ({"K": 64, "V": 64, "BV": 32}, "sm_90", [1, 2, 4]),
        ({"N": 16}, "sm_90", [1, 2, 4]),
        ({"K": 16}, "sm_80", [1, 2, 4]),
    ],
)
def test_only_narrow_heads_on_hopper_lose_candidates(launch, capability, warps):
    candidates: list[Any] = [SimpleNamespace(num_warps=number) for number in (1, 2, 4)]
    left = without_wgmma_of_narrow_heads(candidates, launch, capability)
    assert [config.num_warps for config in left] == warps
    assert without_wgmma_of_narrow_heads(candidates[2:], launch, capability) == candidates[2:]
