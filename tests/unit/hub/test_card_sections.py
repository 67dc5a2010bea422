"""The words of a card: each fact that was recorded, and none that was not."""

import re
from typing import Any

import pytest

from flame_accel.hub.card_sections import format_sections
from flame_accel.hub.citations import PAPERS
from tests.helpers.model_facts import DATASET, START, build_facts, rows, write_body


def test_every_recorded_fact_is_a_row():
    body = write_body(build_facts())
    table = rows(body)
    link = "[org/data](https://huggingface.co/datasets/org/data)"
    assert [value for name, value in table if name == "data"] == [
        f"{link}, config `en`, split `train[:50%]`, 1,200 documents, 75.0% of the tokens",
        "`b.jsonl`, config `en`, split `train[:50%]`, 1,200 documents, 25.0% of the tokens",
    ]
    expected = {
        "tokens": "8,000",
        "passes over the data": "0.25, counted in documents, of the dataset that was read most "
        "often",
        "rows": "documents kept apart, at most 512 tokens each, placed where they fit best",
        "started from": "[org/base@v1](https://huggingface.co/org/base)",
        "updates skipped": "2, which were spikes or not finite",
        "layers with softmax attention": "3, 7",
        "devices": "8 x A GPU, FSDP, bf16 mixed precision",
        "time, without validation and checkpoints": "16 s",
        "device hours": "0.03556",
        "tokens per second": "500",
        "tokens per update": "1,000",
        "model FLOPs utilization": "40.0%",
        "peak memory of a device": "12 GiB",
        "versions": "flame_accel 1.2 (commit 0123456789ab with changes), torch 2.9",
        "validated after step": "8",
    }
    assert expected.items() <= dict(table).items()
    assert "None" not in body


def test_nothing_is_said_that_was_not_recorded():
    body = write_body(build_facts(options={}, starts=[], records=[], tokens=None, step=None))
    assert rows(body) == []
    assert "Limits" not in body and "None" not in body
    # options of another version, some of which are not there
    partial = write_body(build_facts(options={"optimizer.lr": 0.5}))
    assert ("peak learning rate", "0.5") in rows(partial)
    names = {name for name, _ in rows(partial)}
    assert names.isdisjoint({"optimizer", "learning rate schedule", "seed", "rows"})
    assert "None" not in partial


def test_what_limits_the_model_is_said():
    limits = format_sections(build_facts(), name="A", has_loss_curve=False)["limits"]
    assert "not trained on conversations" in limits and "at most 512 tokens" in limits
    chats = {**START, "training_data": [{**DATASET, "conversations": True}], "step": 3}
    limits = format_sections(
        build_facts(starts=[chats], records=[{"step": 8, "tokens": 1}]),
        name="A",
        has_loss_curve=False,
    )["limits"]
    assert "conversations" not in limits
    assert "not validated" in limits and "The first 3 steps were another run's" in limits


@pytest.mark.parametrize(
    ("model_type", "config", "first_lines"),
    [
        ("gla", {}, ["import fla  # without a GPU: import flame_accel"]),
        ("gla_layernorm", {}, ["import flame_accel"]),
        ("llama", {}, ["from transformers import AutoModelForCausalLM"]),
        ("of_mine", {"auto_map": {}}, ["from transformers import AutoModelForCausalLM"]),
        ("gla", {"auto_map": {}}, ["import fla", "from transformers import AutoModelForCausalLM"]),
    ],
)
def test_the_ways_to_load_are_those_that_work(
    model_type: str, config: dict[str, Any], first_lines: list[str]
) -> None:
    facts = build_facts(model_type=model_type, model_config=config)
    usage = format_sections(facts, name="A", has_loss_curve=False)["usage"]
    blocks = re.findall(r"```python\n(.*?)```", usage, re.DOTALL)
    for line, block in zip(first_lines, blocks, strict=False):
        assert block.startswith(line)
        compile(block, "README.md", "exec")
    assert ("trust_remote_code=True" in usage) == ("auto_map" in config)
    assert ("pipeline" in usage) == ("auto_map" in config or model_type == "llama")
    mine = format_sections(build_facts(model_type="of_mine"), name="A", has_loss_curve=False)
    assert "first import the module" in mine["usage"] and "citation" not in mine


@pytest.mark.parametrize("model_type", ["gla", "gla_layernorm"])
def test_the_paper_of_the_architecture_and_the_library_are_cited(model_type: str) -> None:
    facts = build_facts(model_type=model_type)
    citation = format_sections(facts, name="A", has_loss_curve=False)["citation"]
    assert re.findall(r"^@\w+\{(\w+),$", citation, re.M) == ["gla", "yang2024fla"]
    assert PAPERS["gla"].title in citation
