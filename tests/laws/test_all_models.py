"""Every model that fla registers keeps the conformance laws, apart from the known issues."""

from collections.abc import Iterable
from typing import Any

import pytest

from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
from flame_accel.diagnosis.conformance.laws import TRIAL_LAWS, run_law_checks
from flame_accel.models.catalogue import fla_config_classes, tiny_config

SOFTMAX = {"layers": [1], "num_heads": 2, "num_kv_heads": 1}


HYBRIDS = {
    "gla with attention": ("gla", {"attn": SOFTMAX}),
    "gated_deltanet with a window": ("gated_deltanet", {"attn": {**SOFTMAX, "window_size": 16}}),
    "gla with a convolution": ("gla", {"use_short_conv": True}),
}


ONE_MODEL_OF_EACH_MECHANISM = (
    "gla",  # a state
    "gated_deltanet",  # a state and short convolutions
    "transformer",  # keys and values
    "samba",  # both, with a window
    "yoco",  # shared keys and values
    "deltaformer",  # no cache
)


pytestmark = pytest.mark.usefixtures("one_thread")


def broken_laws(
    model_type: str, laws: Iterable[str] | None = None, **changes: Any
) -> dict[str, str]:
    findings = run_law_checks(tiny_config(model_type, **changes), laws=laws)
    return {finding.law: finding.reason for finding in findings if not finding.holds}


def known_to_be_broken(model_type: str, laws: Iterable[str]) -> set[str]:
    return known_issue_reasons_by_law(model_type, "cpu").keys() & set(laws)


# strict: a model that starts to work has to leave the list of known issues
@pytest.mark.parametrize("model_type", sorted(fla_config_classes()))
def test_a_model_breaks_no_law_but_those_that_are_known(model_type):
    broken = broken_laws(model_type, TRIAL_LAWS)
    assert broken.keys() == known_to_be_broken(model_type, TRIAL_LAWS), broken


@pytest.mark.parametrize(
    "model_type",
    [
        name if name in ONE_MODEL_OF_EACH_MECHANISM else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(fla_config_classes())
    ],
)
def test_a_model_generates_what_one_pass_computes(model_type):
    broken = broken_laws(model_type, GENERATION_LAWS)
    assert broken.keys() == known_to_be_broken(model_type, GENERATION_LAWS), broken


@pytest.mark.parametrize(("model_type", "changes"), HYBRIDS.values(), ids=HYBRIDS)
def test_a_variant_breaks_no_law(model_type, changes):
    assert broken_laws(model_type, **changes) == {}


def test_moba_that_leaves_blocks_out_generates_with_all_of_them_by_design():
    assert broken_laws("moba", TRIAL_LAWS, moba_topk=2).keys() == {"generates"}
