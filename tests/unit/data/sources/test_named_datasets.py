"""Datasets of the library `datasets`: read by us where we read alike, else shard by shard."""

import csv
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Skipped
from flame_accel.data.sources.file_readers import END
from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.named_datasets import NamedShards, directly_readable_split_urls
from flame_accel.data.sources.record_parsing import RecordColumn
from flame_accel.data.stages import Shards
from tests.helpers.datasets_on_disk import FULL, TEXTS, json_lines, lines, opened, texts, write_one
from tests.helpers.shard_files import file_shards, records, write_files

CHAT = [{"role": "user", "content": "hi"}]


def write_csv(folder: Path, count: int = 2) -> list[str]:
    files = [str(folder / f"{shard}.csv") for shard in range(count)]
    for shard, file in enumerate(files):
        with open(file, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["id", "text"])
            writer.writerows([i, f"{shard} {i}" if i != 2 else ""] for i in range(5))
    return files


def named_shards(kind: str, files: list[str], **options: Any) -> NamedShards:
    dataset = datasets.load_dataset(kind, data_files=files, split="train", streaming=True)
    assert isinstance(dataset, datasets.IterableDataset)
    return NamedShards(kind, dataset, RecordColumn(**{"max_bytes": 1000, **options}))


def test_shards_of_a_named_dataset_are_read_from_any_place(tmp_path: Path) -> None:
    shards = named_shards("csv", write_csv(tmp_path))
    assert len(shards) == 2
    for shard in range(2):
        found = list(shards.read(shard, 0))
        empty = Skipped("empty", f"csv, shard {shard}, row 2", "no text in column 'text'")
        texts = [f"{shard} {i}" for i in range(5)]
        assert [record for record, _ in found] == [*texts[:2], empty, *texts[3:]]
        for i, (_, position) in enumerate(found):
            assert list(shards.read(shard, position)) == found[i + 1 :]


def test_columns_of_a_named_dataset_are_checked(tmp_path: Path) -> None:
    files = write_csv(tmp_path)
    with pytest.raises(UserError, match=r"no column 'x'; there are: id, text"):
        records(named_shards("csv", files, name="x"), 0)
    with pytest.raises(UserError, match="row 0: column 'id' holds int, not text"):
        records(named_shards("csv", files, name="id"), 0)
    assert {r.why for r in records(named_shards("csv", files, name="id"), 0, 1)} == {"damaged"}
    long = records(named_shards("csv", files, max_bytes=2), 0)[0]
    assert long.what == "3 bytes, more than training.max_document_bytes = 2"


def test_conversations_of_a_named_dataset_are_kept(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"id": [1, 2], "messages": [CHAT, CHAT]})
    table.save_to_disk(tmp_path / "saved")
    file = str(next((tmp_path / "saved").glob("*.arrow")))
    assert records(named_shards("arrow", [file]), 0) == [CHAT, CHAT]


def test_a_damaged_shard_of_a_named_dataset_is_one_bad_record(tmp_path: Path) -> None:
    files = write_csv(tmp_path)
    Path(files[1]).write_bytes(b"id,text\n1,a\n2,\xff\n")
    shards = named_shards("csv", files)
    assert len(records(shards, 0)) == 5
    ((bad, position),) = shards.read(1, 0)
    assert isinstance(bad, Skipped)
    assert (bad.why, bad.where, position) == ("damaged", "csv, shard 1, row 0", END)
    assert bad.what.startswith("UnicodeDecodeError: 'utf-8' codec")
    assert records(shards, 1, position) == []


class InWorker(torch.utils.data.Dataset):
    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, shard: int) -> list[Any]:
        return records(self.shards, shard, 3)


def test_a_worker_of_a_loader_reads_whole_shards(tmp_path: Path) -> None:
    shards = named_shards("csv", write_csv(tmp_path, 3))
    loader = torch.utils.data.DataLoader(InWorker(shards), batch_size=None, num_workers=2)
    assert list(loader) == [[f"{shard} {i}" for i in (3, 4)] for shard in range(3)]


def test_the_fingerprint_of_a_named_dataset_is_of_what_it_says(tmp_path: Path) -> None:
    files = write_csv(tmp_path)
    fingerprint = named_shards("csv", files).quick_content_fingerprint
    assert named_shards("csv", files).quick_content_fingerprint == fingerprint
    assert named_shards("csv", files[:1]).quick_content_fingerprint != fingerprint
    assert named_shards("csv", files, name="text").quick_content_fingerprint != fingerprint


def test_files_of_a_named_dataset_are_read_as_they_lie(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    parquet = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a", "b"]}), parquet)
    builder = datasets.load_dataset_builder("json", data_files={"train": files[:2], "x": files[2]})
    assert directly_readable_split_urls(builder, "train") == files[:2]
    assert directly_readable_split_urls(builder, "x") == files[2:]
    assert directly_readable_split_urls(builder, "test") is None
    builder = datasets.load_dataset_builder("parquet", data_files=parquet)
    assert directly_readable_split_urls(builder, "train") == [parquet]
    assert records(file_shards([parquet]), 0) == ["a", "b"]


def test_splits_of_a_folder_are_those_of_its_names(tmp_path: Path) -> None:
    for name in ("train-00000.jsonl", "train-00001.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
    builder = datasets.load_dataset_builder(str(tmp_path))
    urls = directly_readable_split_urls(builder, "train")
    assert urls == [str(tmp_path / "train-00000.jsonl"), str(tmp_path / "train-00001.jsonl")]


def test_what_we_would_read_otherwise_is_left_to_datasets(tmp_path: Path) -> None:
    lines = write_files(tmp_path)[0]
    text, packed = str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl.xz")
    for file in (text, packed):
        Path(file).write_text("{}")
    (table,) = write_csv(tmp_path, 1)
    cases: list[tuple[str, str, dict[str, Any], bool]] = [
        ("csv", table, {}, False),
        ("json", packed, {}, False),
        ("json", lines, {"field": "data"}, False),
        ("json", lines, {"encoding": "latin-1"}, False),
        ("text", text, {}, False),
        ("text", text, {"sample_by": "document"}, True),
    ]
    for kind, file, options, ours in cases:
        builder = datasets.load_dataset_builder(kind, data_files=file, **options)
        assert directly_readable_split_urls(builder, "train") == ([file] if ours else None), (
            kind,
            options,
        )


def test_a_named_dataset_is_loaded_by_datasets(tmp_path):
    file = write_one("a.jsonl", json_lines(lines()))(tmp_path)
    assert texts(opened("json", data_files=file)) == FULL
    assert texts(opened("json", data_files=file, dataset_split="train[2:3]")) == [TEXTS[2]]
    with pytest.raises(UserError, match=r'Unknown split "dev"\. Should be one of .*train'):
        opened("json", data_files=file, dataset_split="dev")


def test_a_named_dataset_is_streamed_by_us_or_by_datasets(tmp_path):
    file = write_one("a.jsonl", json_lines(lines()))(tmp_path)
    ours = opened("json", data_files=file, streaming=True)
    assert isinstance(ours, FileShards)
    assert texts(ours) == FULL
    file = write_one("a.csv", b"id,text\n0,one\n1,two\n")(tmp_path)
    theirs = opened("csv", data_files=file, streaming=True)
    assert isinstance(theirs, NamedShards)
    assert texts(theirs) == ["one", "two"]
    with pytest.raises(UserError, match=r"Bad split: dev\. Available splits: \['train'\]"):
        opened("csv", data_files=file, dataset_split="dev", streaming=True)
