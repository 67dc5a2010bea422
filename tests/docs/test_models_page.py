"""docs/models.md is made of the results, and the results are those that the code expects."""

import json

import pytest

from flame_accel.commands import models
from flame_accel.diagnosis.conformance.known_issues import known_issues
from flame_accel.diagnosis.conformance.laws import LAWS
from flame_accel.diagnosis.conformance.support_table import (
    explain_broken_laws,
    load_results,
    render_page,
)
from flame_accel.models.catalogue import registered_config_classes
from tests.helpers.runs import ROOT

RESULTS = load_results()
PAGE = ROOT / "docs" / "models.md"


def test_the_page_is_up_to_date():
    said = PAGE.read_text(encoding="utf-8")
    assert said == render_page(RESULTS), "python -m flame_accel models --write docs/models.md"


def test_the_page_has_every_model():
    text = PAGE.read_text(encoding="utf-8")
    for model_type in registered_config_classes():
        assert f"| `{model_type}` |" in text


@pytest.mark.parametrize("kind", RESULTS)
def test_the_results_have_every_law_of_every_model(kind):
    assert RESULTS[kind]["models"].keys() == registered_config_classes().keys()
    for record in RESULTS[kind]["models"].values():
        assert [finding["law"] for finding in record["findings"]] == list(LAWS)


@pytest.mark.parametrize("kind", RESULTS)
def test_every_hole_in_the_results_has_a_known_reason(kind):
    for model_type in RESULTS[kind]["models"]:
        assert explain_broken_laws(RESULTS[kind], model_type) == known_issues(model_type, kind), (
            model_type
        )


def results_of(kind: str, broken: dict[str, dict[str, str]]) -> dict:
    """Results in which all is well but for some laws of some models."""
    records = {
        model_type: {
            "findings": [
                {"law": law, "holds": law not in wrong, "reason": wrong.get(law, ""), "seconds": 0}
                for law in LAWS
            ],
            "kernels": [],
        }
        for model_type in registered_config_classes()
        for wrong in [broken.get(model_type, {})]
    }
    return {"kind": kind, "device": "?", "date": "?", "packages": {}, "models": records}


def test_a_row_tells_where_a_law_holds():
    leak = {"gla": {"keeps documents apart": "because"}, "retnet": {"trains": "no idea"}}
    page = render_page({"cpu": results_of("cpu", leak), "cuda": results_of("cuda", {})})
    assert "| `gla` | yes | yes | H200 | yes |" in page
    assert "| `retnet` | no | yes | yes | yes |" in page
    assert "| `hgrn` | yes | yes | yes | yes |" in page
    assert "* `gla`, keeps documents apart (CPU): because" in page
    assert "| `hgrn` | yes | not run | CPU | CPU |" in render_page({"cpu": results_of("cpu", {})})
    without = results_of("cuda", {})
    del without["models"]["hgrn"]
    page = render_page({"cpu": results_of("cpu", {}), "cuda": without})
    assert "| `hgrn` | yes | not run | CPU | CPU |" in page
    assert "| `gla` | yes | yes | yes | yes |" in page


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("echo Killed >&2; exit 137", "the process died with exit code 137: Killed"),
        ("exec sleep 60", "no answer within 1 s"),
    ],
    ids=["dies", "hangs"],
)
def test_a_process_that_ends_early_keeps_what_it_found(then, reason, tmp_path, monkeypatch):
    found = {"law": "trains", "holds": True, "reason": "", "seconds": 2.0}
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps({'finding': found})}'\n{then}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    findings = models.check("gla", "cpu", 1)["findings"]
    assert findings[0] == found
    assert [finding["law"] for finding in findings] == list(LAWS)
    assert {finding["reason"] for finding in findings[1:]} == {reason}
