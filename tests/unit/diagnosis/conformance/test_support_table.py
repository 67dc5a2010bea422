"""The table of all models says where each law holds."""

from flame_accel.diagnosis.conformance.laws import LAWS, TRIAL_LAWS
from flame_accel.diagnosis.conformance.support_table import (
    render_models_page,
)
from flame_accel.models.catalogue import fla_config_classes


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
        for model_type in fla_config_classes()
        for wrong in [broken.get(model_type, {})]
    }
    return {"kind": kind, "device": "?", "date": "?", "packages": {}, "models": records}


def test_a_row_tells_where_a_law_holds():
    leak = {"gla": {"keeps documents apart": "because"}, "retnet": {"trains": "no idea"}}
    page = render_models_page({"cpu": results_of("cpu", leak), "cuda": results_of("cuda", {})})
    assert "| `gla` | yes | yes | H200 | yes |" in page
    assert "| `retnet` | no | yes | yes | yes |" in page
    assert "| `hgrn` | yes | yes | yes | yes |" in page
    assert "* `gla`, keeps documents apart (CPU): because" in page
    assert "| `hgrn` | yes | not run | CPU | CPU |" in render_models_page(
        {"cpu": results_of("cpu", {})}
    )
    without = results_of("cuda", {})
    del without["models"]["hgrn"]
    page = render_models_page({"cpu": results_of("cpu", {}), "cuda": without})
    assert "| `hgrn` | yes | not run | CPU | CPU |" in page
    assert "| `gla` | yes | yes | yes | yes |" in page


def test_results_older_than_a_law_do_not_claim_it():
    old = results_of("cuda", {})
    for record in old["models"].values():
        record["findings"] = [f for f in record["findings"] if f["law"] in TRIAL_LAWS]
    page = render_models_page({"cpu": results_of("cpu", {}), "cuda": old})
    assert "| `gla` | yes | yes | yes | CPU | yes | CPU | CPU | CPU |" in page
    assert "| `cat` | yes | yes | yes | CPU | yes | CPU | no cache | no cache |" in page
    assert "without left-padded batch, beam 3, cached = uncached, prompt in pieces" in page
    new = render_models_page({"cpu": results_of("cpu", {}), "cuda": results_of("cuda", {})})
    assert "| `gla` | yes | yes | yes | yes | yes | yes | yes | yes |" in new
    assert "without noise" not in new
