"""Charts: every key of the records has one, and several runs share them."""

import math

from flame_accel.observe.evaluations_file import Evaluation
from flame_accel.observe.report.charts import build_charts
from flame_accel.observe.report.read_runs import RunRecord


def run_with(name: str, *keys: str, records: int = 3) -> RunRecord:
    return RunRecord(
        name=name,
        records=[{"step": n} | dict.fromkeys(keys, 1.0 / n) for n in range(1, records + 1)],
    )


def titles(*runs: RunRecord) -> dict[str, list[str]]:
    return {c.kind.title: [each.name for each in c.series] for c in build_charts(runs)}


def test_training_and_validation_are_in_one_chart():
    assert titles(run_with("a", "train/loss", "eval/loss", "optimizer/lr")) == {
        "Loss": ["training", "validation"],
        "Learning rate": ["learning rate"],
    }


def test_a_key_that_is_not_known_has_a_chart_of_its_own():
    assert titles(run_with("a", "mine/norm", "eval/quality")) == {
        "quality": ["validation"],
        "mine/norm": ["mine/norm"],
    }


def test_named_sets_are_in_one_chart_for_each_metric():
    keys = ("eval/loss", "eval/code/loss", "eval/code/accuracy", "eval/accuracy")
    assert titles(run_with("a", *keys)) == {
        "Loss": ["validation"],
        "Validation loss": ["validation", "code"],
        "Accuracy": ["code", "validation"],
    }


def test_sources_of_the_data_are_in_one_chart():
    drawn = titles(run_with("a", "data/share/books", "data/share/code"))
    assert drawn == {"Mixture of the data": ["books", "code"]}


def test_of_several_runs_each_chart_has_one_curve_for_a_run_and_key():
    keys = ("train/loss", "eval/loss", "data/share/x", "data/share/y")
    charts = build_charts([run_with("a", *keys), run_with("b", "train/loss")])
    assert [(c.kind.title, [(s.run, s.color, s.dash) for s in c.series]) for c in charts] == [
        ("Loss", [(0, 0, 0), (0, 0, 1), (1, 1, 0)]),
        ("Mixture of the data: x", [(0, 0, 0)]),
        ("Mixture of the data: y", [(0, 0, 0)]),
    ]


def test_all_curves_of_a_page_together_are_limited():
    runs = [run_with(str(n), *(f"key/{m}" for m in range(30)), records=2000) for n in range(20)]
    points = sum(len(s.curve.steps) for chart in build_charts(runs) for s in chart.series)
    assert points <= 20_000


def evaluation(step: int, **by_position: list[float]) -> Evaluation:
    return Evaluation(
        step=step, tokens=step, kind="set", name="long", metrics={}, by_position=by_position
    )


def test_the_last_evaluation_by_position_is_drawn():
    early = evaluation(5, edges=[0, 64], loss=[9.0])
    late = evaluation(10, edges=[0, 64, 128, 256], loss=[3.0, math.nan, 2.0])
    options = {"training.seq_len": 64, "training.context_len": "none"}
    (chart,) = build_charts([RunRecord(name="a", evaluations=[late, early], options=options)])
    assert chart.x_marks == [64]
    assert chart.kind.title == "Loss by position: long"
    assert chart.series[0].curve.steps == [32, 96, 192]
    assert chart.series[0].curve.values == [3.0, None, 2.0]
    assert chart.series[0].curve.gaps == [96]


def test_edges_that_do_not_fit_are_not_drawn():
    wrong = evaluation(5, edges=[0, 64], loss=[9.0, 8.0])
    endless = evaluation(5, edges=[0, math.inf], loss=[9.0])
    for each in (wrong, endless, evaluation(5, loss=[1.0])):
        assert build_charts([RunRecord(name="a", evaluations=[each])]) == []


def test_positions_without_targets_are_left_out_and_others_that_are_not_finite_are_gaps():
    probe = evaluation(
        5, edges=[0, 64, 128, 256], loss=[math.nan, math.nan, 2.0], accuracy=[math.nan, 0.5, 1.0]
    )
    loss, accuracy = build_charts([RunRecord(name="a", evaluations=[probe])])
    assert (loss.series[0].curve.steps, loss.series[0].curve.gaps) == ([96, 192], [96])
    assert accuracy.series[0].curve.values == [0.5, 1.0]
    assert loss.ranges == accuracy.ranges == [[(64, 128), (128, 256)]]


def test_a_set_without_any_targets_by_position_has_no_chart():
    none = evaluation(5, edges=[0, 64], loss=[math.nan], accuracy=[math.nan])
    assert build_charts([RunRecord(name="a", evaluations=[none])]) == []
