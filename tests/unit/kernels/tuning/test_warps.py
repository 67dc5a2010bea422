"""Kernels that ptxas breaks are launched with too few warps for the instructions it breaks."""

import pytest

pytest.importorskip("triton")

from flame_accel.kernels.tuning.warps import choose_safe_num_warps


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
