"""Results of lm-eval become one record per task and group, each named by its setting."""

from typing import Any

import pytest

from flame_accel.evaluation.harness.results import (
    EvaluatedModel,
    ReportedMetrics,
    compute_average,
    make_records,
    name_dataset,
    select_metrics,
)

MODEL = EvaluatedModel(label="hf", step=8, tokens=2048)
REPORTED = ReportedMetrics(
    by_task={"wiki": ["ppl"], "a": ["acc"], "b": ["acc_norm"]}, averaged=["acc", "acc_norm"]
)


def make_results(**changes: Any) -> dict[str, Any]:
    tasks = {
        "wiki": {"alias": "wiki", "sample_len": 2, "ppl,none": 20.0, "ppl_stderr,none": "N/A"},
        "a": {"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.9},
        "b": {"acc,none": 0.1, "acc_norm,none": 0.25},
    }
    return {
        "results": {**tasks, "group": {"alias": "group"}},
        "group_subtasks": {"group": ["wiki", "a", "b"]},
        "configs": {name: {"task": name, "dataset_path": "org/data"} for name in tasks},
        "versions": dict.fromkeys(tasks, 1),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {name: {"original": 9, "effective": 2} for name in tasks},
        "higher_is_better": {},
        "config": {"limit": None, "model_dtype": "torch.float32"},
        "lm_eval_version": "0.4.13",
        "chat_template": None,
        **changes,
    }


def make(results: dict[str, Any]) -> dict[str, Any]:
    records = make_records(
        results, MODEL, reported_by_group={"group": REPORTED}, results_file="lm_eval/results.json"
    )
    assert {(r.step, r.tokens, r.kind) for r in records} == {(8, 2048, "lm_eval")}
    return {record.name: record for record in records}


def test_a_task_keeps_its_numbers_and_a_group_the_average_that_papers_report():
    records = make(make_results())
    assert records["a"].metrics == {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.9}
    assert records["wiki"].metrics == {"ppl": 20.0}
    assert records["group"].metrics == {"average": pytest.approx((0.5 + 0.25) / 2)}
    details = records["a"].details
    assert (details["dataset"], details["examples"], details["dtype"]) == ("org/data", 2, "float32")
    assert "dataset" not in records["group"].details


def test_there_is_no_average_of_a_part_of_the_tasks():
    results = make_results()
    del results["results"]["b"]
    assert compute_average(results, REPORTED) == {}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n-shot": {"a": 5, "b": 5, "wiki": 5}}, "a (5-shot)"),
        ({"chat_template": "{{x}}"}, "a (chat template)"),
        ({"config": {"limit": 10.0}}, "a (limit 10)"),
    ],
    ids=["shots", "chat", "limit"],
)
def test_another_setting_is_another_name(changes: dict[str, Any], name: str):
    assert name in make(make_results(**changes))


def test_filters_are_named_and_lengths_that_were_not_asked_for_left_out():
    found = {"exact_match,strict": 0.5, "1024,none": 0.75, "4096,none": -1, "name": "x"}
    assert select_metrics(found) == {"exact_match,strict": 0.5, "1024": 0.75}


@pytest.mark.parametrize(
    ("path", "name"),
    [("org/data", "org/data"), ("json", "task"), ("/home/me/data", "task"), ("", "task")],
)
def test_a_path_of_this_machine_names_no_dataset(path: str, name: str):
    assert name_dataset({"task": "task", "dataset_path": path}) == name
