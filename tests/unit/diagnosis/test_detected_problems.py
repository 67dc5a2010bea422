"""Which problems a machine has, and which models they concern."""

from dataclasses import replace

import pytest

from flame_accel.diagnosis.trainability import find_training_problems
from flame_accel.models.catalogue import fla_config_classes, tiny_config
from tests.helpers.machines import BAD_TRITON, H200, with_versions

GATED = {"comba", "gated_deltanet", "mom", "precond_gated_deltanet", "yoco"}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"triton": "3.6.0"}, GATED),
        ({"triton": "3.4.0"}, GATED),
        ({"triton": "3.7.0"}, GATED),
        ({"triton": "3.7.1"}, set()),
        ({"triton": "3.3.1"}, set()),
        # fla's tilelang kernel does not serve simple GLA
        ({"triton": "3.6.0", "tilelang": "0.1.9"}, {"yoco"}),
    ],
)
def test_hopper_with_a_bad_triton_refuses_the_gated_models(changes, refused):
    machine = replace(with_versions(**changes), nvcc=True)
    assert refused == {
        model_type
        for model_type in fla_config_classes()
        if any(
            finding.blocks_training and "Hopper" in finding.name
            for finding in find_training_problems(machine, tiny_config(model_type))
        )
    }


@pytest.mark.parametrize(
    "machine",
    [
        replace(BAD_TRITON, devices=(replace(H200, name="A100", capability=(8, 0)),)),
        replace(BAD_TRITON, kernels="torch"),
    ],
    ids=["another GPU", "PyTorch kernels"],
)
def test_elsewhere_that_triton_trains_them(machine):
    assert not any(
        f.blocks_training for f in find_training_problems(machine, tiny_config("gated_deltanet"))
    )


def test_a_part_that_the_config_switches_off_does_not_count():
    gated = tiny_config("gated_deltaproduct", use_forget_gate=True)
    plain = tiny_config("gated_deltaproduct", use_forget_gate=False)
    assert any(finding.blocks_training for finding in find_training_problems(BAD_TRITON, gated))
    assert not any(finding.blocks_training for finding in find_training_problems(BAD_TRITON, plain))
