"""Runs over small files of every kind: their options, their steps and their states."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data.cache.cache_writer import CacheOrigin, write_cache_unless_finished
from flame_accel.data.from_options import (
    RunData,
    build_step_batches,
    open_data,
)
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.stream_state import merge_rank_states
from flame_accel.data.sources.opening import open_chosen_split
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.table import Table
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import load_tokenizer, tokenizer_identity

BYTE = load_tokenizer("byte", False)


EOS = 256


ROWS = 16
"""Of a step."""


STEPS = 200


ONE, THREE = "{a}", "{a},{b},{c}"


SHARES = (5.0, 3.0, 2.0)


BEST_FIT = {"packing": "best_fit", "varlen": True, "context_len": 12}


KINDS: dict[str, dict[str, Any]] = {
    "one table": {"dataset": ONE},
    "one table, best fit": {"dataset": ONE, **BEST_FIT},
    "one stream": {"dataset": ONE, "streaming": True, "varlen": True, "context_len": 12},
    "one stream, best fit": {"dataset": ONE, "streaming": True, **BEST_FIT},
    "three tables": {"dataset": THREE, "data_probs": SHARES, "varlen": True, "context_len": 12},
    "three tables, best fit": {"dataset": THREE, "data_probs": SHARES, **BEST_FIT},
    "three streams": {"dataset": THREE, "data_probs": SHARES, "streaming": True},
    "three streams, best fit": {
        "dataset": THREE,
        "data_probs": SHARES,
        "streaming": True,
        **BEST_FIT,
    },
    "a task, best fit": {"dataset": "synthetic:parity:length=9:documents=40", **BEST_FIT},
}


class Case(NamedTuple):
    """A kind of run, and what it draws when nothing disturbs it."""

    training: TrainingConfig
    data: RunData
    steps: np.ndarray
    """What `rows_of` says, of each."""
    states: list[dict[str, Any]]
    """Merged, before each step and behind the last."""


def texts_of(source: str, count: int) -> list[str]:
    """Texts of which no two are alike; of some there is little or nothing."""
    texts = [f"{source}{i} " + "\u00e9abc def "[: i * 7 % 11] * (i % 7) for i in range(count)]
    texts[5] = ""
    return texts


TEXTS = {"a": texts_of("a", 60), "b": texts_of("b", 50), "c": texts_of("c", 40)}


def write_json_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_cached(dataset: Path, folder: Path) -> str:
    """What `prepare` makes of a dataset."""
    table = open_chosen_split(DatasetOptions(dataset=str(dataset)))
    assert isinstance(table, Table)
    recipe = CacheOrigin(
        tokenizer_identity=tokenizer_identity(BYTE), vocabulary_size=258, add_bos=False, source={}
    )
    write_cache_unless_finished(table, Encoder(BYTE, add_bos=False), folder, recipe)
    return str(folder)


def open_run(**options: Any) -> tuple[TrainingConfig, RunData]:
    training = TrainingConfig(
        batch_size=ROWS, num_workers=0, pin_memory=False, **{"shuffle_block": 24, **options}
    )
    return training, open_data(training, EvaluationConfig(), BYTE)


def rows_of(step: list, micro_batch_size: int, seq_len: int) -> np.ndarray:
    """Tokens, labels and starts of segments of a rank's rows, int64 [rows, 3, T]."""
    parts = []
    for batch in step:
        starts = np.zeros(micro_batch_size * seq_len, dtype=np.int64)
        starts[batch["cu_seqlens"][:-1].numpy() if "cu_seqlens" in batch else ()] = 1
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        packed = (1, micro_batch_size * seq_len)
        assert ids.shape == (packed if "cu_seqlens" in batch else (micro_batch_size, seq_len))
        assert batch["num_targets"] == (labels[:, 1:] != IGNORED_LABEL).sum()
        fields = [field.reshape(micro_batch_size, seq_len) for field in (ids, labels, starts)]
        parts.append(np.stack(fields, axis=1))
    return np.concatenate(parts)


def play(
    training: TrainingConfig,
    data: RunData,
    steps: int,
    *,
    world_size: int = 1,
    accumulation: int = 1,
    num_workers: int = 0,
    state: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of all ranks in the order of the lanes, and the state behind them, through JSON."""
    size = ROWS // world_size // accumulation
    training = replace(
        training,
        batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_workers=num_workers,
    )
    ranks = [
        build_step_batches(training, data, rank=rank, world_size=world_size, state=state)
        for rank in range(world_size)
    ]
    drawn = [
        [rows_of(step, size, training.seq_len) for step in islice(batches, steps)]
        for batches in ranks
    ]
    merged = merge_rank_states([batches.state_dict() for batches in reversed(ranks)])
    joined = [np.concatenate(parts) for parts in zip(*drawn, strict=True)]
    return np.stack(joined), json.loads(json.dumps(merged))


def epochs_of(state: Mapping[str, Any]) -> list[list[int]]:
    """Complete passes of each lane over each source."""
    return [[source[0] for source in sources] for _, _, _, *sources in state["cursors"]]
