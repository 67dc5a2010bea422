"""Every model generates with fla's kernels what one pass computes, apart from the known issues."""

import pytest
import torch

from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from flame_accel.diagnosis.conformance.known_issues import (
    known_issue_reasons_by_law,
    laws_decided_by_rounding,
)
from flame_accel.diagnosis.conformance.laws import run_law_checks
from flame_accel.kernels.tuning import disable_tuning_then_forget_choices_made
from flame_accel.models.catalogue import fla_config_classes, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("model_type", sorted(fla_config_classes()))
def test_a_model_generates_what_one_pass_computes(model_type):
    with disable_tuning_then_forget_choices_made():
        findings = list(run_law_checks(tiny_config(model_type), "cuda", GENERATION_LAWS))
    broken = {finding.law: finding.reason for finding in findings if not finding.holds}
    known = known_issue_reasons_by_law(model_type, "cuda").keys() & GENERATION_LAWS.keys()
    always = known - laws_decided_by_rounding(model_type, "cuda")
    assert always <= broken.keys() <= known, broken
