"""Whether one model can train on a machine, from facts alone."""

from dataclasses import replace

import pytest

from flame_accel.config import UserError
from flame_accel.diagnosis import trainability
from flame_accel.diagnosis.machine import (
    Machine,
)
from flame_accel.models.catalogue import tiny_config
from tests.helpers.machines import GOOD, H200, ON_CPU, SICK


def test_memory_and_disk_are_compared_with_the_size_of_the_model():
    config = tiny_config("gla")
    two = replace(GOOD, devices=(H200, H200))

    def names(machine: Machine, parameters: int) -> list[str]:
        return [
            finding.name
            for finding in trainability.find_training_problems(machine, config, parameters)
        ]

    assert names(GOOD, 10**9) == []
    assert names(GOOD, 10**10) == ["too large", "little disk"]
    assert names(two, 10**10) == ["too large for one GPU", "little disk"]
    assert names(ON_CPU, 10**10) == ["too large", "little disk"]


def test_kernels_that_take_no_fp32_are_known():
    def names(model_type: str, machine: Machine, precision: str) -> list[str]:
        config = tiny_config(model_type)
        found = trainability.find_training_problems(machine, config, precision=precision)
        return [finding.name for finding in found]

    for model_type in ("delta_net", "gated_deltaproduct", "parallax"):
        assert names(model_type, GOOD, "float32") == ["no float32"]
        assert names(model_type, GOOD, "bfloat16") == []
        assert names(model_type, ON_CPU, "float32") == []
    assert names("gated_deltanet", GOOD, "float32") == []


def test_warnings_do_not_stop_a_run(monkeypatch):
    monkeypatch.setattr(
        trainability, "collect_machine_facts", lambda *arguments: SICK["disk nearly full"]
    )
    (warning,) = trainability.check_machine_and_list_warnings(
        tiny_config("gla"), "auto", "exp", "bfloat16"
    )
    assert "less than 1 GiB is free for the run (exp)" in warning


def test_a_known_defect_of_the_model_stops_a_run(monkeypatch):
    monkeypatch.setattr(
        trainability, "known_issue_reasons_by_law", lambda *arguments: {"trains": "it is broken"}
    )
    with pytest.raises(UserError, match="it is broken"):
        trainability.check_machine_and_list_warnings(tiny_config("gla"), "auto", "exp", "bfloat16")
