"""What a card says about tasks of lm-eval: this model's full results, as the Hub accepts them."""

from dataclasses import replace
from pathlib import Path

import pytest

from flame_accel.hub.card_benchmarks import format_benchmarks_section, list_benchmark_results
from flame_accel.hub.card_header import format_header_entries
from flame_accel.hub.run_facts import read_model_facts
from flame_accel.observe.evaluations_file import Evaluation, EvaluationsFile
from tests.helpers.local_hub.card_rules import judge_card
from tests.helpers.model_facts import build_facts

PIQA = Evaluation(
    step=8,
    tokens=8000,
    kind="lm_eval",
    name="piqa (5-shot)",
    metrics={"acc": 0.625, "acc_stderr": 0.0125, "ppl": float("inf")},
    details={
        "dataset": "org/piqa",
        "config": None,
        "split": "validation",
        "num_fewshot": 5,
        "limit": None,
        "lm_eval": "0.4.13",
    },
)
GROUP = replace(PIQA, name="suite", metrics={"average": 0.5}, details={"lm_eval": "0.4.13"})


def test_the_table_has_every_metric_with_its_error_and_the_hub_each_finite_one():
    facts = build_facts(benchmarks=[PIQA, GROUP])
    table = format_benchmarks_section(facts)
    assert "| `piqa (5-shot)` | 5 | acc | 0.625 | 0.0125 |" in table
    assert "| `piqa (5-shot)` | 5 | ppl | inf |  |" in table
    assert "| `suite` |  | average | 0.5 |  |" in table
    (result,) = list_benchmark_results(facts)
    assert (result.dataset_type, result.metric_type, result.metric_value) == (
        "org/piqa",
        "acc",
        0.625,
    )
    assert result.dataset_args == {"num_few_shot": 5}
    header = format_header_entries(facts, name="x")
    assert "0.625" in header["model-index"]
    assert judge_card("---\n" + "".join(header.values()) + "---\n") == ([], [])


@pytest.mark.parametrize(
    ("examples", "said"), [(1, " (1 example)"), (99, " (99 examples)"), (100, "")]
)
def test_a_result_of_few_examples_says_their_number(examples: int, said: str):
    record = replace(PIQA, details={**PIQA.details, "examples": examples})
    facts = build_facts(benchmarks=[record])
    assert f"| `piqa (5-shot)`{said} | 5 | acc |" in format_benchmarks_section(facts)
    assert [result.dataset_name for result in list_benchmark_results(facts)] == [
        f"piqa (5-shot){said}"
    ]


def test_without_benchmarks_nothing_is_said():
    assert format_benchmarks_section(build_facts()) == ""
    assert list_benchmark_results(build_facts()) == []


def test_only_full_results_of_this_very_step_are_facts(finished: Path):
    file = EvaluationsFile(finished)
    for record in (
        PIQA,
        replace(PIQA, step=4, name="earlier"),
        replace(PIQA, kind="probe", name="probe"),
        replace(PIQA, name="try", details={**PIQA.details, "limit": 10}),
    ):
        file.append(record)
    facts = read_model_facts(finished / "hf", finished, step=8, tokens=8000)
    assert [record.name for record in facts.benchmarks] == ["piqa (5-shot)"]
