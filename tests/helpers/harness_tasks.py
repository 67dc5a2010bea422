"""Tasks for lm-evaluation-harness from a few lines of local data, one for each kind of request."""

import json
from pathlib import Path
from typing import Any

import yaml

CHOICES = [
    {"prompt": "    return", "choices": [" self", " 7$!q"], "label": 0},
    {"prompt": "import", "choices": [" %%&&", " os\n"], "label": 1},
    {"prompt": "for i in", "choices": [" range(", " xqzvw("], "label": 0},
    {"prompt": "if x is not", "choices": [" None:", " Zqrt:"], "label": 1},
]
TEXTS = [
    {"text": "def add(a, b):\n    return a + b\n"},
    {"text": "class Point:\n    def __init__(self, x):\n        self.x = x\n"},
    {"text": "import os\n"},
]
CHOICE_TASK: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}
PERPLEXITY_TASK: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    ],
}
GENERATION_TASK: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{choices[label]}}",
    "target_delimiter": "",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TASKS = {
    "python_choice": (CHOICE_TASK, CHOICES),
    "python_text": (PERPLEXITY_TASK, TEXTS),
    "python_answer": (GENERATION_TASK, CHOICES),
}
"""By name: what lm-eval is told, and the examples."""


def write_tasks(folder: Path, *names: str) -> Path:
    """Writes the YAML and JSON files of some of `TASKS`, all unless named; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or TASKS:
        write_task(folder, name, *TASKS[name])
    return folder


def write_task(
    folder: Path, name: str, task: dict[str, Any], examples: list[dict[str, Any]]
) -> None:
    """Writes a task with these examples as its data."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1},
        **task,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
