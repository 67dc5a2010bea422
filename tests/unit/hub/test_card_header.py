"""The header of a card: what the Hub reads and accepts, and a name."""

import pytest

from flame_accel.hub.card_header import (
    choose_model_name,
    format_parameter_count,
    list_results_at_model_step,
)
from flame_accel.hub.card_header import format_header_entries as header_of
from tests.helpers.local_hub.card_rules import judge_card
from tests.helpers.model_facts import OPTIONS, RECORDS, build_facts, rows, write_body


def test_the_header_is_what_the_hub_reads():
    options = OPTIONS | {"hub.license": "mit", "hub.language": ["de"], "hub.tags": ["gla", "x"]}
    header = header_of(build_facts(options=options), name="gla-340M")
    assert judge_card("---\n" + "".join(header.values()) + "---\n") == ([], [])
    assert header["license"] == "license: mit\n"
    assert header["base_model"] == "base_model: org/base\n"
    assert header["datasets"] == "datasets:\n- org/data\n"
    assert header["tags"] == "tags:\n- flash-linear-attention\n- gla\n- flame_accel\n- x\n"
    assert all(entry.endswith("\n") for entry in header.values())


def test_only_finite_figures_of_this_very_model_are_results():
    results = list_results_at_model_step(build_facts())
    assert [(r.metric_type, r.metric_value) for r in results] == [
        ("loss", 2.5),
        ("perplexity", 12.18),
    ]
    assert {(r.dataset_name, r.dataset_config, r.dataset_split) for r in results} == {
        ("org/data", "en", "test")
    }
    overflow = [*RECORDS[:-1], {**RECORDS[-1], "eval/perplexity": float("inf")}]
    results = list_results_at_model_step(build_facts(records=overflow))
    assert [r.metric_type for r in results] == ["loss"]
    assert ("validation: perplexity", "inf") in rows(write_body(build_facts(records=overflow)))
    assert list_results_at_model_step(build_facts(step=9)) == []


def test_a_model_is_named_by_the_options_or_by_its_size():
    assert choose_model_name(build_facts()) == "gla-340M"
    assert choose_model_name(build_facts(num_weights=None)) == "gla"
    assert choose_model_name(build_facts(options={"hub.repo_id": "org/name"})) == "name"
    options = {"hub.repo_id": "org/name", "hub.model_name": "Mine"}
    assert choose_model_name(build_facts(options=options)) == "Mine"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (76_128, "76K"),
        (1_340_000_000, "1.3B"),
        (7_000_000_000, "7B"),
        (340_900_000, "340M"),
        (999_600_000, "1B"),
    ],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert format_parameter_count(count) == text
