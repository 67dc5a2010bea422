"""The words of a card: each fact that was recorded, and none that was not."""

import re
from pathlib import Path
from typing import Any

import pytest

from flame_accel.hub.card_header import (
    choose_model_name,
    format_parameter_count,
    list_results_at_model_step,
)
from flame_accel.hub.card_header import format_header_entries as header_of
from flame_accel.hub.card_sections import format_sections
from flame_accel.hub.card_training_tables import format_duration
from flame_accel.hub.citations import PAPERS
from flame_accel.hub.run_facts import ModelFacts, count_stored_parameters
from tests.helpers.local_hub.card_rules import judge_card

DATASET = {
    "name": "org/data",
    "on_hub": True,
    "config": "en",
    "split": "train[:50%]",
    "share": 0.75,
    "documents": 1200,
    "conversations": False,
    "held_out_share": None,
}
START = {
    "step": 0,
    "packages": {"flame_accel": "1.2", "torch": "2.9", "triton": None},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "processes": 8,
    "engine": "FSDP",
    "mixed_precision": "bf16",
    "device": "A GPU",
    "training_data": [DATASET, {**DATASET, "name": "b.jsonl", "on_hub": False, "share": 0.25}],
    "evaluation_data": {**DATASET, "split": "test"},
    "starting_weights": {"name": "org/base@v1", "on_hub": True},
    "changed_options": [],
}
RECORDS = [
    {
        "step": step,
        "tokens": 1000 * step,
        "train/loss": 3.0,
        "eval/loss": 2.5,
        "eval/perplexity": 12.18,
        "time/step_seconds": 2.0,
        "throughput/tokens_per_second": 500.0,
        "throughput/mfu": 0.4,
        "memory/peak_gib": 10.0 + step % 3,
        "optimizer/skipped_steps": 2,
        "epoch": 0.25,
    }
    for step in (1, 4, 8)
]
OPTIONS = {
    "training.seq_len": 2048,
    "training.varlen": True,
    "training.context_len": 512,
    "training.packing": "best_fit",
    "optimizer.lr": 1e-3,
    "training.steps": 8,
}


def build_facts(**changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "model_type": "gla",
        "num_weights": 340_000_000,
        "model_config": {"num_hidden_layers": 24, "attn": {"layers": [3, 7]}},
        "step": 8,
        "tokens": 8000,
        "options": OPTIONS,
        "starts": [START],
        "records": RECORDS,
    }
    return ModelFacts(**values | changes)


def write_body(facts: ModelFacts) -> str:
    return "\n".join(format_sections(facts, name="A", has_loss_curve=False).values())


def rows(body: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| (\w.*?) \| (.*) \|$", body, re.M)


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


def test_passes_over_a_stream_are_counted_in_files():
    one = {**START, "training_data": START["training_data"][:1]}
    streamed = write_body(build_facts(starts=[one], options={"training.streaming": True}))
    assert ("passes over the data", "0.25, counted in files") in rows(streamed)


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


def test_changes_of_options_are_told_without_paths():
    changed = [
        {"option": "optimizer.lr", "before": 0.5, "after": 0.25},
        {"option": "training.dataset", "before": "/home/me/a", "after": "/mnt/a"},
        {"option": "metrics.log_freq", "before": 1, "after": 2},
        {"option": "of.another_version", "before": "/x", "after": 2},
    ]
    second = {**START, "step": 4, "processes": 2, "changed_options": changed}
    body = write_body(build_facts(starts=[START, second]))
    assert re.findall(r"^\* from step.*$", body, re.M) == [
        "* from step 5: `optimizer.lr` 0.5 → 0.25"
    ]
    devices = [value for name, value in rows(body) if name == "devices"]
    assert devices[1] == "from step 5: 2 x A GPU, FSDP, bf16 mixed precision"
    # 4 steps on 8 devices and 4 on 2, of 2 seconds
    assert dict(rows(body))["device hours"] == f"{(4 * 8 + 4 * 2) * 2 / 3600:.4g}"


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
    results = list_results_at_model_step(build_facts()) or []
    assert [(r.metric_type, r.metric_value) for r in results] == [
        ("loss", 2.5),
        ("perplexity", 12.18),
    ]
    assert {(r.dataset_name, r.dataset_config, r.dataset_split) for r in results} == {
        ("org/data", "en", "test")
    }
    overflow = [*RECORDS[:-1], {**RECORDS[-1], "eval/perplexity": float("inf")}]
    results = list_results_at_model_step(build_facts(records=overflow)) or []
    assert [r.metric_type for r in results] == ["loss"]
    assert ("validation: perplexity", "inf") in rows(write_body(build_facts(records=overflow)))
    assert list_results_at_model_step(build_facts(step=9)) is None


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5194, "0.519 s"), (59.4, "59.4 s"), (61, "1 min 1 s"), (3_725_000, "1,034 h 43 min")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_stored_weights_are_counted_over_all_files(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    assert count_stored_parameters(tmp_path) is None
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(5)}, tmp_path / "model-2.safetensors")
    assert count_stored_parameters(tmp_path) == 18
