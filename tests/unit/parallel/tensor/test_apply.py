"""A model sharded over two TP ranks trains like the full one, under the same names."""

import json
from typing import Any

import pytest

from flame_accel.parallel.tensor.plans import SUPPORTED_MODEL_TYPES
from tests.helpers.runs import ROOT, run_python
from tests.helpers.tensor_parallel_worker import CASES, GATHERED_LOSS

CASE_NAMES = [
    *(f"{name}, loss parallel" for name in CASES),
    *(f"{name}, gathered loss" for name in GATHERED_LOSS),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two TP ranks found in all cases."""
    folder = tmp_path_factory.mktemp("tp")
    done = run_python([str(ROOT / "tests/helpers/tensor_parallel_worker.py"), str(folder)])
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.covers_option("training.tensor_parallel_degree", "training.disable_loss_parallel")
@pytest.mark.distributed
@pytest.mark.parametrize("name", CASE_NAMES)
def test_a_sharded_model_trains_like_the_full_one(results, name):
    """The worker sets training.tensor_parallel_degree and training.disable_loss_parallel."""
    case = results[name]
    assert case["sharded"] == pytest.approx(case["full"], rel=1e-5)
    assert case["ranks agree"]
    # weights of Adam move by the learning rate in the direction of a gradient of any size
    assert case["weights"] < 1e-4
    assert case["logits"] < 1e-4


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASE_NAMES)
def test_names_and_attributes_stay_and_copies_stay_bit_identical(results, name):
    case = results[name]
    assert case["same names"]
    assert case["unequal copies"] == []
    # most of a model is sharded
    assert case["local elements"] < 0.55


def test_every_model_type_with_a_plan_has_a_case():
    assert {name.split(",")[0] for name in CASES} >= set(SUPPORTED_MODEL_TYPES)
