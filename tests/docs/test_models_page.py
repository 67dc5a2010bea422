"""docs/models.md is up to date with the results, and has every model and law."""

import pytest

from flame_accel.diagnosis.conformance.known_issues import (
    known_issue_reasons_by_law,
    laws_decided_by_rounding,
)
from flame_accel.diagnosis.conformance.laws import LAWS
from flame_accel.diagnosis.conformance.support_table import (
    RESULT_FILES,
    known_or_raised_reasons_by_broken_law,
    load_existing_results_by_device,
    render_models_page,
)
from flame_accel.diagnosis.conformance.transformers_table import (
    TRANSFORMERS_RESULT_FILES,
    render_transformers_section,
)
from flame_accel.models.catalogue import fla_config_classes
from flame_accel.models.transformers_catalogue import transformers_only_decoder_config_classes
from tests.helpers.runs import ROOT

RESULTS = load_existing_results_by_device(RESULT_FILES)
OF_TRANSFORMERS = load_existing_results_by_device(TRANSFORMERS_RESULT_FILES)


PAGE = ROOT / "docs" / "models.md"


def test_the_page_is_up_to_date():
    said = PAGE.read_text(encoding="utf-8")
    assert said == render_models_page(RESULTS) + render_transformers_section(OF_TRANSFORMERS), (
        "python -m flame_accel models --write docs/models.md"
    )


def test_the_page_has_every_model():
    text = PAGE.read_text(encoding="utf-8")
    for model_type in fla_config_classes():
        assert f"| `{model_type}` |" in text


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_the_results_of_the_cpu_have_every_model_of_transformers(kind):
    results, known = (
        OF_TRANSFORMERS[kind]["models"].keys(),
        transformers_only_decoder_config_classes(),
    )
    # a GPU may have run an older transformers, and not all: the page says which did not run
    assert results <= known.keys() if kind == "cuda" else results == known.keys()


@pytest.mark.parametrize("kind", RESULTS)
def test_the_results_have_every_law_of_every_model(kind):
    assert RESULTS[kind]["models"].keys() == fla_config_classes().keys()
    for record in RESULTS[kind]["models"].values():
        laws = [finding["law"] for finding in record["findings"]]
        # results of a GPU may be older than the newest laws, which the page does not claim then
        assert laws == list(LAWS)[: len(laws)]
        assert kind == "cuda" or len(laws) == len(LAWS)


@pytest.mark.parametrize("kind", RESULTS)
def test_every_broken_law_in_the_results_has_a_known_reason(kind):
    for model_type, record in RESULTS[kind]["models"].items():
        checked = {finding["law"] for finding in record["findings"]}
        known = known_issue_reasons_by_law(model_type, kind)
        broken = known_or_raised_reasons_by_broken_law(RESULTS[kind], model_type)
        held = laws_decided_by_rounding(model_type, kind) - broken.keys()
        assert broken == {law: reason for law, reason in known.items() if law in checked - held}, (
            model_type
        )
