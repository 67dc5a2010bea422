"""Conditions of the table of known problems."""

from dataclasses import replace

import pytest

from flame_accel.diagnosis.detected_problems import detect_known_problems
from tests.helpers.machines import with_device


@pytest.mark.parametrize(
    ("capability", "architectures", "known"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 9), ("sm_80", "sm_90"), True),
        ((12, 0), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((7, 0), ("sm_75", "compute_75"), False),
        ((9, 0), (), True),
    ],
)
def test_machine_code_runs_within_a_major_version_and_ptx_on_newer_devices(
    capability, architectures, known
):
    machine = replace(with_device(capability=capability), architectures=architectures)
    found = {finding.name for finding in detect_known_problems(machine)}
    assert ("GPU unknown to torch" not in found) == known
