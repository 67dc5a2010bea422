"""Facts of a run for its model card, and the rows of the tables that are made from them."""

import re
from typing import Any

from flame_accel.hub.card_sections import format_sections
from flame_accel.hub.run_facts import ModelFacts

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
