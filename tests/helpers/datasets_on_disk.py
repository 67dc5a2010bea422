"""Datasets of every kind, written for tests, and what they open to."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.named_datasets import NamedShards
from flame_accel.data.sources.opening import (
    DatasetSide,
    open_chosen_split,
    open_training_and_evaluation,
)
from flame_accel.data.sources.options import (
    DatasetOptions,
    evaluation_dataset_options,
    training_dataset_options,
)
from flame_accel.data.sources.table import Table
from flame_accel.data.stages import RecordSource

TEXTS = ["first\r\n\ttext", "", "second \U0001f642", "third\n"]


FULL = [text for text in TEXTS if text]


def opened(dataset: str, **options: Any) -> RecordSource:
    return open_chosen_split(DatasetOptions(dataset=dataset, **options))


def records(source: RecordSource) -> list[Record | Skipped]:
    if isinstance(source, Table):
        return [source[index] for index in range(len(source))]
    assert isinstance(source, FileShards | NamedShards)
    return [record for shard in range(len(source)) for record, _ in source.read(shard, 0)]


def texts(source: RecordSource) -> list[str]:
    """Every text, and nothing else but records without one."""
    found = records(source)
    assert all(record.why == "empty" for record in found if isinstance(record, Skipped))
    return [record for record in found if isinstance(record, str)]


def json_lines(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def lines(column: str = "text") -> list[dict]:
    return [{"id": i, column: text} for i, text in enumerate(TEXTS)]


def write_text_folder(folder: Path) -> str:
    for name, text in zip(["a.txt", "b/a.py", "b/b.txt", "c.txt"], TEXTS, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    (folder / ".hidden").write_bytes(b"\xff")
    return str(folder)


def write_record_folder(folder: Path) -> str:
    (folder / "1.jsonl").write_bytes(json_lines(lines()[:2]))
    (folder / "2.jsonl").write_bytes(json_lines(lines()[2:]))
    (folder / "README.md").write_text("no document")
    return str(folder)


def write_one(name: str, content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def write_parquet(folder: Path, column: str = "text") -> str:
    pq.write_table(pa.table({"id": [0, 1, 2, 3], column: TEXTS}), folder / "a.parquet")
    return str(folder / "a.parquet")


def write_saved(folder: Path) -> str:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    return str(folder / "saved")


FILES = {
    "folder of text files": write_text_folder,
    "folder of records": write_record_folder,
    "glob": lambda folder: write_record_folder(folder) + "/*.jsonl",
    "json lines": write_one("a.jsonl", json_lines(lines())),
    "content column": write_one("a.jsonl", json_lines(lines("content"))),
    "null text": write_one("a.jsonl", json_lines([lines()[0], {"text": None}, *lines()[2:]])),
    "json array": write_one("a.json", json.dumps(lines()).encode()),
    "gzip": write_one("a.jsonl.gz", gzip.compress(json_lines(lines()))),
    "parquet": write_parquet,
}


def write_saved_dict(folder: Path, *splits: str) -> str:
    of_split = {name: datasets.Dataset.from_dict({"text": [name]}) for name in splits}
    datasets.DatasetDict(**of_split).save_to_disk(folder / "saved")
    return str(folder / "saved")


def pair(
    training: dict[str, Any], evaluation: dict[str, Any], share: float = 0.1
) -> tuple[list[DatasetSide], DatasetSide]:
    sets = evaluation_dataset_options(
        EvaluationConfig(**evaluation), read_like=TrainingConfig(**training)
    )
    sides, [held_out] = open_training_and_evaluation(
        training_dataset_options(TrainingConfig(**training)), list(sets.values()), share
    )
    return sides, held_out
