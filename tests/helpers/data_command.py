"""Data of every form and the options of a run that reads it, for tests of the `data` command."""

import json
from typing import Any

MARKED_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


TEXTS = [f"text {i} " + "abc\n" * (i * 5 % 17) for i in range(30)]


ROW_OPTIONS = {
    "training.batch_size": 3,
    "training.seq_len": 48,
    "training.gradient_accumulation_steps": 2,
}


FORMS: dict[str, dict[str, Any]] = {
    "lines": {"training.dataset": "texts.jsonl"},
    "compressed lines": {"training.dataset": "packed.jsonl.gz", "training.varlen": "true"},
    "parquet": {"training.dataset": "rows.parquet", "training.text_column": "body"},
    "token cache": {"training.dataset": "tokens", "training.varlen": "true"},
    "stream": {"training.dataset": "texts.jsonl", "training.streaming": "true"},
    "mixture": {
        "training.dataset": "texts.jsonl,packed.jsonl.gz",
        "training.data_probs": "1,3",
    },
    "conversations": {
        "training.dataset": "talks.jsonl",
        "model.tokenizer_path": "chat_tokenizer",
        "training.varlen": "true",
    },
    "best fit": {
        "training.dataset": "texts.jsonl",
        "training.varlen": "true",
        "training.context_len": 32,
        "training.packing": "best_fit",
    },
    "held out": {
        "training.dataset": "texts.jsonl",
        "evaluation.dataset": "texts.jsonl",
        "evaluation.held_out_share": 0.4,
        "training.batch_size": 1,
    },
}


def to_json_lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def to_flags(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]
