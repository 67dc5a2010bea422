"""The known issues name models and laws that exist."""

from flame_accel.diagnosis.conformance.known_issues import KNOWN_ISSUES
from flame_accel.diagnosis.conformance.laws import (
    LAWS,
)
from flame_accel.models.catalogue import fla_config_classes


def test_known_issues_name_models_and_laws():
    for issue in KNOWN_ISSUES:
        assert set(issue.models.split()) <= fla_config_classes().keys()
        assert issue.law in LAWS
        assert set(issue.devices.split()) <= {"cpu", "cuda"}
