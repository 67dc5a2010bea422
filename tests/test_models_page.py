"""docs/models.md is made of the results, and the results are those that the code expects."""

import pytest
from conftest import ROOT

from flame_accel.commands import models
from flame_accel.models.catalogue import registered_configs
from flame_accel.models.checkup import LAWS
from flame_accel.models.holes import known_holes
from flame_accel.models.matrix import failures, load_results, render

RESULTS = load_results()
PAGE = ROOT / "docs" / "models.md"


def test_the_page_is_up_to_date():
    said = PAGE.read_text(encoding="utf-8")
    assert said == render(RESULTS), "python -m flame_accel models --write docs/models.md"


def test_the_page_has_every_model():
    text = PAGE.read_text(encoding="utf-8")
    for model_type in registered_configs():
        assert f"| `{model_type}` |" in text


@pytest.mark.parametrize("kind", RESULTS)
def test_the_results_have_every_law_of_every_model(kind):
    assert RESULTS[kind]["models"].keys() == registered_configs().keys()
    for record in RESULTS[kind]["models"].values():
        assert [finding["law"] for finding in record["findings"]] == list(LAWS)


@pytest.mark.parametrize("kind", RESULTS)
def test_every_hole_in_the_results_has_a_known_reason(kind):
    for model_type in registered_configs():
        assert failures(RESULTS[kind], model_type) == known_holes(model_type, kind), model_type


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
        for model_type in registered_configs()
        for wrong in [broken.get(model_type, {})]
    }
    return {"kind": kind, "device": "?", "date": "?", "packages": {}, "models": records}


def test_a_row_tells_where_a_law_holds():
    leak = {"gla": {"keeps documents apart": "because"}, "retnet": {"trains": "no idea"}}
    page = render({"cpu": results_of("cpu", leak), "cuda": results_of("cuda", {})})
    assert "| `gla` | yes | yes | H200 | yes |" in page
    assert "| `retnet` | no | yes | yes | yes |" in page
    assert "| `hgrn` | yes | yes | yes | yes |" in page
    assert "* `gla`, keeps documents apart (CPU): because" in page
    assert "| `hgrn` | yes | not run | CPU | CPU |" in render({"cpu": results_of("cpu", {})})


def test_a_process_that_dies_or_hangs_is_a_reason(monkeypatch):
    died = models.check("no_such_model", "cpu", 60)
    assert "exit code 1: KeyError: 'no_such_model'" in died["findings"][0]["reason"]
    assert [finding["law"] for finding in died["findings"]] == list(LAWS)
    hung = models.check("gla", "cpu", 0.1)
    assert hung["findings"][0]["reason"] == "no answer within 0 s"
