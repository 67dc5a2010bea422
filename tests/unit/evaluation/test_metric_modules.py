"""Metrics as modules of the `evaluate` library: ours, and a user's by its path."""

import math
from pathlib import Path

import pytest

from flame_accel.config import UserError
from flame_accel.config.evaluation_sets import SHIPPED_METRICS
from flame_accel.evaluation.metric_modules import SHIPPED_FOLDER, MetricModule

COLUMNS = {
    "nats": [12.0, 18.0],
    "correct": [1, 3],
    "targets": [4, 6],
    "answers": [2, 2],
    "correct_answers": [0, 1],
    "bytes": [20, 0],
    "predictions": [1, 2, 3, 4],
    "references": [1, 2, 0, 0],
}
MODULE = """
import datasets
import evaluate


class Half(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{name: datasets.Value("float64") for name in {columns}}}),
        )

    def _compute(self, **columns):
        return {returned}
"""
FIGURES = {
    "loss": 3.0,
    "perplexity": math.exp(3.0),
    "bits_per_byte": 30 / math.log(2) / 20,
    "accuracy": 0.4,
    "answer_accuracy": 0.25,
}


def write_module(folder: Path, columns: list[str], returned: str, name: str = "half") -> Path:
    path = folder / name / f"{name}.py"
    path.parent.mkdir()
    path.write_text(MODULE.format(columns=columns, returned=returned))
    return path


@pytest.mark.parametrize("name", SHIPPED_METRICS)
def test_the_figures_follow_from_the_sums_however_rows_are_split(name: str):
    module = MetricModule(name)
    whole = {key: [sum(values)] for key, values in COLUMNS.items()}
    assert module.compute(COLUMNS) == module.compute(whole) == {name: FIGURES[name]}


def test_every_folder_of_the_package_is_a_known_metric():
    assert {path.name for path in SHIPPED_FOLDER.iterdir() if path.is_dir()} == set(SHIPPED_METRICS)


def test_a_hopeless_loss_has_no_finite_perplexity():
    columns = {"nats": [1e6], "targets": [1]}
    assert MetricModule("perplexity").compute(columns) == {"perplexity": math.inf}


def test_a_module_of_the_user_gets_the_columns_that_it_asks_for(tmp_path: Path):
    path = write_module(
        tmp_path,
        ["predictions", "references"],
        '{"half": sum(map(int.__eq__, map(int, columns["predictions"]), '
        'map(int, columns["references"]))) / len(columns["references"])}',
    )
    for name in (path, path.parent):
        module = MetricModule(str(name))
        assert module.needs_tokens
        assert module.compute(COLUMNS) == {"half": 0.5}
    assert not MetricModule("loss").needs_tokens


def test_a_module_of_the_user_may_be_called_like_one_of_ours(tmp_path: Path):
    path = write_module(tmp_path, ["targets"], '{"loss": -1.0}', name="loss")
    assert MetricModule(str(path)).compute(COLUMNS) == {"loss": -1.0}
    assert MetricModule("loss").compute(COLUMNS) == {"loss": 3.0}


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (["predictions", "nats"], None, "asks for predictions, nats"),
        (["pictures"], None, "asks for pictures"),
        ([], "import no_such_package_at_all\n", "no_such_package_at_all"),
        ([], "import datasets, evaluate\n", "one module on each line"),
        ([], "raise SystemExit(5)\n", "cannot be loaded: SystemExit: 5"),
        ([], "x = 1\n", "cannot be loaded"),
    ],
)
def test_what_is_no_metric_of_a_language_model_is_refused(
    tmp_path: Path, columns: list[str], text: str | None, message: str
):
    path = write_module(tmp_path, columns, "{}")
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        MetricModule(str(path))


@pytest.mark.parametrize(
    "returned", ["{}[0]", '{"half": "low"}', '{"half": [1.0]}', "None", "__import__('sys').exit(3)"]
)
def test_a_module_that_fails_has_no_figures_and_says_so_once(
    tmp_path: Path, returned: str, log: pytest.LogCaptureFixture
):
    module = MetricModule(str(write_module(tmp_path, ["targets"], returned)))
    assert module.compute(COLUMNS) == module.compute(COLUMNS) == {}
    assert log.text.count("has failed") == 1
