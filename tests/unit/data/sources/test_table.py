"""Tables give records by index, and damaged or empty ones as such."""

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_accel.data.documents import Skipped
from flame_accel.data.sources.record_hashes import record_hash
from flame_accel.data.sources.table import Table
from tests.helpers.tables import CONVERSATION, of_dataset, records

VALUES = ["first\r\n", None, "na\u00efve", "", "longer than it may be", "last"]


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
