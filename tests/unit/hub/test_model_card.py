"""The model card: valid metadata, the run's own figures, and the same bytes for the same run."""

import re
from pathlib import Path

import pytest
import yaml
from transformers import GPT2Config

from flame_accel import __version__
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import OptimizerConfig, TrainingConfig
from flame_accel.hub.model_card import training_table_rows, write_model_card
from tests.helpers.runs import SHORT_RUN

FACTS = {"data": "a/b", "tokens": "1,024"}


@pytest.fixture
def card(tmp_path: Path) -> str:
    write_model_card(tmp_path, GPT2Config(), FACTS)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_metadata_is_what_the_hub_reads(card: str):
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation"
    assert {"flash-linear-attention", "flame_accel", "gpt2"} <= set(metadata["tags"])
    assert body.lstrip().startswith("# A gpt2 language model")
    assert f"flame_accel {__version__}" in body


def test_the_facts_are_rows_of_a_table(card: str):
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert table[:2] == ["| | |", "|---|---|"]
    assert table[2:] == ["| data | a/b |", "| tokens | 1,024 |"]


def test_the_example_is_valid_python(card: str):
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "README.md", "exec")
    assert "AutoModelForCausalLM.from_pretrained(path)" in code


def test_the_facts_of_a_run_are_those_of_its_options_and_counters():
    facts = training_table_rows(
        TrainingConfig(dataset="org/data"),
        OptimizerConfig(lr=3e-4, scheduler="cosine"),
        TrainState(step=1200, tokens=9_830_400),
        tokens_per_step=8192,
        num_parameters=1_234_567,
    )
    assert facts == {
        "data": "org/data",
        "tokens": "9,830,400",
        "updates": "1,200",
        "tokens per update": "8,192",
        "parameters": "1,234,567",
        "learning rate": "0.0003, cosine",
    }


def test_the_card_of_an_export_has_the_figures_of_its_run(train_here, flags, tmp_path, corpus):
    for name in ("one", "two"):
        train_here(flags(**SHORT_RUN, **{"job.dump_folder": tmp_path / name}))
    cards = [(tmp_path / name / "hf/README.md").read_text() for name in ("one", "two")]
    # neither dates nor timings
    assert cards[0] == cards[1]
    for row in (f"| data | {corpus} |", "| tokens | 512 |", "| updates | 2 |"):
        assert row in cards[0]
