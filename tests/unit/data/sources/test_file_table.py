"""Files are copied into a table once; each record is a row, and a damaged copy is refused."""

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources import file_table
from flame_accel.data.sources.file_table import CHECKSUMS, copy_files_to_cached_table
from flame_accel.data.sources.record_parsing import RecordColumn
from flame_accel.data.sources.table import Table
from tests.helpers.tables import CONVERSATION, records, write_lines


def table_of(files: list[str], **options: Any) -> Table:
    return copy_files_to_cached_table(files, RecordColumn(**options), name="here")


def test_every_record_of_files_is_a_row(tmp_path):
    lines = [{"text": "a"}, {"text": None}, "no object", {"text": "x" * 99}, {"text": "\u00e9"}]
    files = [write_lines(tmp_path / "1.jsonl", lines), write_lines(tmp_path / "2.jsonl", lines[:1])]
    table = table_of(files, max_bytes=20)
    assert [record if isinstance(record, str) else record.why for record in records(table)] == [
        *("a", "empty", "damaged", "damaged", "\u00e9"),
        "a",
    ]
    assert table[2].where == f"{files[0]}, line 3"
    assert table[2].what == "a record must be an object with named columns, not str"


def test_conversations_of_files(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"messages": CONVERSATION}, {"messages": []}])
    table = table_of([file])
    assert table[0] == CONVERSATION
    assert table[1].why == "empty"


def test_a_copy_in_many_batches_is_the_same(tmp_path, monkeypatch):
    texts = [str(i) * (i % 7 + 1) for i in range(50)]
    monkeypatch.setattr(file_table, "BATCH_ROWS", 8)
    monkeypatch.setattr(file_table, "BATCH_CHARACTERS", 20)
    file = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert records(table_of([file])) == texts


def test_files_without_a_record_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: no records found\n"):
        table_of([write_lines(tmp_path / "a.jsonl", [])])


def test_files_of_another_form_are_refused_in_one_sentence(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"title": "a", "body": "b"}])
    with pytest.raises(UserError, match=r"no column 'text' .*; there are: title, body\n"):
        table_of([file])
    assert records(table_of([file], name="body")) == ["b"]


def test_a_changed_file_is_copied_again(tmp_path):
    path = tmp_path / "a.jsonl"
    first = table_of([write_lines(path, [{"text": "one"}])])
    second = table_of([write_lines(path, [{"text": "another"}])])
    third = table_of([str(path)], max_bytes=5)
    assert (first[0], second[0], third[0].why) == ("one", "another", "damaged")
    assert len({table.sampled_records_fingerprint for table in (first, second, third)}) == 3


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    table_of([file])
    monkeypatch.setattr(file_table, "read_records", None)
    assert records(table_of([file])) == ["one"]


def test_a_cache_without_room_is_named(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(file))
    with pytest.raises(UserError, match=r"here: cannot be copied into .*\n.*HF_DATASETS_CACHE"):
        table_of([file])


def _load_in_process(files: list[str]) -> list[Record | Skipped]:
    return records(table_of(files))


def test_processes_that_copy_at_once_agree(tmp_path):
    files = [write_lines(tmp_path / f"{i}.jsonl", [{"text": str(i)}] * 100) for i in range(3)]
    fork = multiprocessing.get_context("fork")
    # a multiprocessing.Pool is terminated at the end, which hangs where a worker has just started
    with ProcessPoolExecutor(3, mp_context=fork) as pool:
        found = list(pool.map(_load_in_process, [files] * 3))
    assert found == [[str(i) for i in range(3) for _ in range(100)]] * 3


def test_a_pickled_table_is_a_path(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": f"{i:0100}"} for i in range(2000)])
    table = table_of([file])
    content = pickle.dumps(table)
    assert len(content) < 20_000
    assert records(pickle.loads(content)) == records(table)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(9)))
    return [str(path)]


def open_copy(files: list[str]) -> list[object]:
    table = copy_files_to_cached_table(files, RecordColumn("text"), name="data.jsonl")
    return [table[index] for index in range(len(table))]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_copy_with_a_flipped_bit_is_refused_and_made_again_once_deleted(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
):
    whole = open_copy(files)
    assert whole[0] == "document 0" and open_copy(files) == whole
    [recorded] = (tmp_path / "cache").rglob(CHECKSUMS)
    [arrow] = recorded.parent.glob("*.arrow")
    if is_large:
        monkeypatch.setattr(file_table, "MAX_VERIFIED_BYTES", 0)
        os.truncate(arrow, arrow.stat().st_size - 8)
    else:
        content = arrow.read_bytes()
        at = content.index(b"document 0")
        arrow.write_bytes(content[:at] + b"D" + content[at + 1 :])
    with pytest.raises(UserError, match=r"is damaged: .*\.arrow") as error:
        open_copy(files)
    assert f"delete {recorded.parent}" in str(error.value)
    for file in recorded.parent.iterdir():
        file.unlink()
    recorded.parent.rmdir()
    assert open_copy(files) == whole


def test_damaged_checksums_are_no_reason_to_trust_a_copy(files: list[str], tmp_path: Path):
    open_copy(files)
    [recorded] = (tmp_path / "cache").rglob(CHECKSUMS)
    recorded.write_text("[" * 100_000)
    with pytest.raises(UserError, match=f"{CHECKSUMS} cannot be read"):
        open_copy(files)
