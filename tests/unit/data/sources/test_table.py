"""Tables give records by index, whatever they are made from, and bad ones as such."""

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources import table as table_module
from flame_accel.data.sources.record_hashes import (
    FINGERPRINT_DOCUMENTS,
    HeldOut,
    is_held_out,
    record_hash,
    sample_fingerprint,
)
from flame_accel.data.sources.table import Table, copy_files_to_table

CONVERSATION = [{"role": "user", "content": "a\u00e9"}, {"role": "assistant", "content": "b"}]
VALUES = ["first\r\n", None, "na\u00efve", "", "longer than it may be", "last"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def records(table: Table) -> list[Record | Skipped]:
    return [table[index] for index in range(len(table))]


def write_lines(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def of_dataset(values: list[Any], column: str = "text", **options: Any) -> Table:
    return Table("here", datasets.Dataset.from_dict({column: values}), column, **options)


def test_texts_of_a_dataset_and_what_stands_where_there_is_none():
    found = records(of_dataset(VALUES, max_bytes=10))
    assert [found[0], found[2], found[5]] == ["first\r\n", "na\u00efve", "last"]
    skipped = [record for record in found if isinstance(record, Skipped)]
    assert [(s.why, s.where) for s in skipped] == [
        ("empty", "here, row 1"),
        ("empty", "here, row 3"),
        ("damaged", "here, row 4"),
    ]
    assert skipped[2].what == "21 bytes, more than training.max_document_bytes = 10"


def test_texts_that_are_not_utf8_are_damaged():
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    table = Table("here", datasets.Dataset(pa.table({"text": broken})), "text")
    assert table[0] == "a"
    assert table[1] == Skipped("damaged", "here, row 1", "not UTF-8 at byte 0 (b'\\xff')")


@given(st.lists(st.integers(0, 5)), st.integers(1, 4))
def test_selected_rows_of_a_table_in_pieces(chosen, pieces):
    dataset = datasets.concatenate_datasets(
        [datasets.Dataset.from_dict({"text": VALUES[i::pieces]}) for i in range(pieces)]
    )
    every = records(Table("here", dataset, "text"))
    some = records(Table("here", dataset.select(chosen), "text"))
    assert [record for record in some if isinstance(record, str)] == [
        every[i] for i in chosen if isinstance(every[i], str)
    ]
    assert len(some) == len(chosen)


@pytest.mark.parametrize("form", ["struct", "json"])
def test_conversations_of_a_dataset(form):
    values = [CONVERSATION, None, [], [{"role": None, "content": "a"}]]
    features = None if form == "struct" else datasets.Features(m=datasets.List(datasets.Json()))
    table = Table("here", datasets.Dataset.from_dict({"m": values}, features=features), "m")
    found = records(table)
    assert found[0] == CONVERSATION
    assert [record.why for record in found[1:]] == ["empty", "empty", "damaged"]
    assert record_hash(found[0]) == record_hash(CONVERSATION)


def test_every_record_of_files_is_a_row(tmp_path):
    lines = [{"text": "a"}, {"text": None}, "no object", {"text": "x" * 99}, {"text": "\u00e9"}]
    files = [write_lines(tmp_path / "1.jsonl", lines), write_lines(tmp_path / "2.jsonl", lines[:1])]
    table = copy_files_to_table(files, name="here", max_bytes=20)
    assert [record if isinstance(record, str) else record.why for record in records(table)] == [
        *("a", "empty", "damaged", "damaged", "\u00e9"),
        "a",
    ]
    assert table[2].where == f"{files[0]}, line 3"
    assert table[2].what == "a record must be an object with named columns, not str"


def test_conversations_of_files(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"messages": CONVERSATION}, {"messages": []}])
    table = copy_files_to_table([file], name="here")
    assert table[0] == CONVERSATION
    assert table[1].why == "empty"


def test_a_copy_in_many_batches_is_the_same(tmp_path, monkeypatch):
    texts = [str(i) * (i % 7 + 1) for i in range(50)]
    monkeypatch.setattr(table_module, "BATCH_ROWS", 8)
    monkeypatch.setattr(table_module, "BATCH_CHARACTERS", 20)
    file = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert records(copy_files_to_table([file], name="here")) == texts


def test_files_without_a_record_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: there are no records\n"):
        copy_files_to_table([write_lines(tmp_path / "a.jsonl", [])], name="here")


def test_files_of_another_form_are_refused_in_one_sentence(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"title": "a", "body": "b"}])
    with pytest.raises(UserError, match=r"no column 'text' .*; there are: title, body\n"):
        copy_files_to_table([file], name="here")
    assert records(copy_files_to_table([file], name="here", text_column="body")) == ["b"]


def test_a_changed_file_is_copied_again(tmp_path):
    path = tmp_path / "a.jsonl"
    first = copy_files_to_table([write_lines(path, [{"text": "one"}])], name="here")
    second = copy_files_to_table([write_lines(path, [{"text": "another"}])], name="here")
    third = copy_files_to_table([str(path)], name="here", max_bytes=5)
    assert (first[0], second[0], third[0].why) == ("one", "another", "damaged")
    assert len({table.fingerprint for table in (first, second, third)}) == 3


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    copy_files_to_table([file], name="here")
    monkeypatch.setattr(table_module, "read_records", None)
    assert records(copy_files_to_table([file], name="here")) == ["one"]


def test_a_cache_without_room_is_named(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(file))
    with pytest.raises(UserError, match=r"here: cannot be copied into .*\n.*HF_DATASETS_CACHE"):
        copy_files_to_table([file], name="here")


def _load_in_process(files: list[str]) -> list[Record | Skipped]:
    return records(copy_files_to_table(files, name="here"))


def test_processes_that_copy_at_once_agree(tmp_path):
    files = [write_lines(tmp_path / f"{i}.jsonl", [{"text": str(i)}] * 100) for i in range(3)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_load_in_process, [files] * 3, chunksize=1)
    assert found == [[str(i) for i in range(3) for _ in range(100)]] * 3


def test_a_pickled_table_is_a_path(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": f"{i:0100}"} for i in range(2000)])
    table = copy_files_to_table([file], name="here")
    content = pickle.dumps(table)
    assert len(content) < 20_000
    assert records(pickle.loads(content)) == records(table)


def test_fingerprints_are_of_the_content_not_of_the_form(tmp_path):
    texts = [f"text {i}" for i in range(2 * FINGERPRINT_DOCUMENTS)]
    dataset = datasets.Dataset.from_dict({"body": texts})
    file = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    a = Table("a", dataset, "body")
    b = copy_files_to_table([file], name="b")
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint == sample_fingerprint(len(texts), lambda i: record_hash(texts[i]))
    assert a.fingerprint != Table("a", dataset.select(range(len(texts) - 1)), "body").fingerprint
    assert a.fingerprint != of_dataset([texts[1], texts[0], *texts[2:]]).fingerprint


def test_skipped_records_count_as_nothing_in_a_fingerprint():
    hashes = [record_hash("a"), 0, 0]
    expected = sample_fingerprint(3, hashes.__getitem__)
    assert of_dataset(["a", None, ""]).fingerprint == expected


def test_hashes_do_not_change_from_one_version_to_the_next():
    # whoever changes them moves documents from one side of the split to the other
    assert record_hash("na\u00efve") == 0xBEF26892EEEB4CDC
    assert record_hash(CONVERSATION) == 0x278BCFFD1DF28014
    reordered = [dict(reversed(message.items())) for message in CONVERSATION]
    assert record_hash(reordered) == record_hash(CONVERSATION)


@given(st.text(), st.floats(0, 1))
def test_every_document_is_on_one_side(text, share):
    sides = [HeldOut(share, wanted)(text) for wanted in ("training", "evaluation")]
    assert sorted(sides, key=str) == sorted([text, Skipped("held out")], key=str)
    assert (sides[1] == text) == is_held_out(record_hash(text), share)


def test_the_share_that_is_held_out():
    held = [is_held_out(record_hash(str(i)), 0.1) for i in range(10_000)]
    # five standard deviations
    assert abs(sum(held) - 1000) < 5 * 30
    assert not any(is_held_out(record_hash(str(i)), 0.0) for i in range(100))
    assert is_held_out(2**64 - 1, 1.0)


def test_what_is_passed_over_stays_so():
    skipped = Skipped("empty", "here", "why")
    assert HeldOut(0.5, "training")(skipped) is skipped
