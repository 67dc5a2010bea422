"""Usable cores are those that the system lets this process run on."""

import os

import pytest

from flame_accel.cpu_cores import count_cores_in_affinity_mask


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_cores_that_the_process_may_run_on_count() -> None:
    allowed = os.sched_getaffinity(0)
    assert count_cores_in_affinity_mask() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cores_in_affinity_mask() == 1
    finally:
        os.sched_setaffinity(0, allowed)
