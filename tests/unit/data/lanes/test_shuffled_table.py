"""Laws of reading documents in any order: lanes share them out, what is passed over is counted."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.epoch_order import EpochOrder
from flame_accel.data.lanes.shuffled_table import ShuffledTable, TableReader
from tests.helpers.numbered_documents import Numbers, documents_of

DAMAGED = Skipped("damaged", "corpus.jsonl:3", "byte 0xff is not UTF-8")
HELD_OUT = Skipped("held out")


class Records(Numbers):
    """Documents of five tokens, but for some records."""

    def __init__(self, count: int, others: dict[int, Skipped]) -> None:
        super().__init__([5] * count)
        self._others = others

    def __getitem__(self, index: int) -> Document | Skipped:
        return self._others.get(index) or super().__getitem__(index)


def open_reader(
    documents: Numbers,
    *,
    lane: int = 0,
    num_lanes: int = 1,
    cursor: SourceCursor | None = None,
    max_bad: int | None = None,
    reported: list[Skipped] | None = None,
) -> TableReader:
    source = ShuffledTable(documents, seed=7)
    told = [] if reported is None else reported
    return source.open_reader(
        lane, num_lanes, cursor or SourceCursor(), SkipPolicy(max_bad), told.append
    )


def read(reader: TableReader, count: int) -> list[list[int]]:
    found = []
    for _ in range(count):
        found.append(reader.peek().tokens.tolist())
        reader.advance()
    return found


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20).filter(any), st.data())
@settings(max_examples=60, deadline=None)
def test_a_lane_reads_its_share_and_can_be_entered_anywhere(
    lengths: list[int], data: st.DataObject
) -> None:
    num_lanes = data.draw(st.integers(1, len(lengths)), label="lanes")
    lane = data.draw(st.integers(0, num_lanes - 1), label="lane")
    cut = data.draw(st.integers(0, 29), label="cut")
    documents = Numbers(lengths)
    way = documents_of(documents, lane, num_lanes)
    expected = [document.tokens.tolist() for document in islice(way, 30)]

    reader = open_reader(documents, lane=lane, num_lanes=num_lanes)
    assert read(reader, cut) == expected[:cut]
    if data.draw(st.booleans(), label="having looked at the next"):
        reader.peek()
    again = open_reader(documents, lane=lane, num_lanes=num_lanes, cursor=reader.cursor)
    assert read(again, 30 - cut) == expected[cut:] == read(reader, 30 - cut)
    assert again.cursor == reader.cursor
    assert reader.cursor.consumed == 30
    assert reader.cursor.tokens == sum(map(len, expected))


def test_lanes_share_the_documents_out() -> None:
    documents = Numbers([5] * 11)
    readers = [open_reader(documents, lane=lane, num_lanes=4) for lane in range(4)]
    for epoch in range(1, 4):
        seen = [
            tokens[0] // 1000
            for r in readers
            for tokens in read(r, 3 if r is not readers[3] else 2)
        ]
        assert sorted(seen) == list(range(11))
        assert [reader.epoch for reader in readers] == [epoch] * 4


def test_the_epoch_is_a_fraction_of_the_lanes_documents() -> None:
    reader = open_reader(Numbers([5] * 8), num_lanes=2)
    read(reader, 5)
    assert reader.epoch == 1.25
    assert reader.cursor == SourceCursor(place=(1, 1), consumed=5, tokens=25)


def test_peek_stays_at_a_document_until_advance() -> None:
    reader = open_reader(Numbers([5] * 3))
    assert reader.peek() is reader.peek()
    assert reader.cursor.consumed == 0


def test_documents_passed_over_are_counted_and_the_bad_ones_reported() -> None:
    empty = Skipped("empty", "corpus.jsonl:9", "there is no text")
    records = Records(10, {0: DAMAGED, 1: empty, 2: HELD_OUT, 3: HELD_OUT})
    reported: list[Skipped] = []
    reader = open_reader(records, max_bad=5, reported=reported)
    read(reader, 12)
    reader.peek()
    cursor = reader.cursor
    # the second epoch is complete but for what lies behind the last document
    assert cursor.consumed + cursor.skipped == cursor.place[0] * 10 + cursor.place[1]
    assert cursor.bad == len(reported) >= 2
    assert {DAMAGED, empty} == set(reported)


def test_without_a_limit_only_damaged_records_are_refused() -> None:
    reader = open_reader(Records(10, {0: Skipped("empty", "row 0"), 2: HELD_OUT}))
    read(reader, 30)
    assert reader.cursor.bad == 0
    assert reader.cursor.skipped > 0
    with pytest.raises(UserError) as error:
        read(open_reader(Records(10, {4: DAMAGED})), 10)
    assert (error.value.where, error.value.what) == ("corpus.jsonl:3", "byte 0xff is not UTF-8")
    assert "--training.max_bad_records N" in str(error.value)


@pytest.mark.parametrize("why", ["empty", "damaged"])
def test_a_limit_of_zero_refuses_the_first(why: str) -> None:
    with pytest.raises(UserError, match=f"numbers 0: the document is {why}"):
        read(open_reader(Records(10, {4: Skipped(why)}), max_bad=0), 10)


def test_a_refused_record_stays_under_the_cursor() -> None:
    reader = open_reader(Records(1, {0: DAMAGED}))
    for _ in range(2):
        with pytest.raises(UserError, match="not UTF-8"):
            reader.peek()
        assert reader.cursor == SourceCursor(place=(0, 0))


@pytest.mark.parametrize("other", [Skipped("empty"), HELD_OUT])
def test_data_without_any_text_is_an_error_and_no_endless_loop(other: Skipped) -> None:
    reader = open_reader(Records(30, dict.fromkeys(range(30), other)), lane=2, num_lanes=3)
    with pytest.raises(UserError, match="no text in any of the 30 documents"):
        reader.peek()


def test_one_text_among_many_records_is_found_by_every_lane() -> None:
    records = Records(40, {i: HELD_OUT for i in range(40) if i != 11})
    for lane in range(40):
        reader = open_reader(records, lane=lane, num_lanes=40)
        assert reader.peek().tokens[0] == 11_000


def test_more_lanes_than_documents_are_refused_with_both_numbers() -> None:
    source = ShuffledTable(Numbers([5] * 7), seed=0)
    source.check_lanes(7)
    with pytest.raises(UserError, match="7 documents are fewer than the 8 rows of a step"):
        source.check_lanes(8)


def test_the_source_is_known_by_its_documents() -> None:
    source = ShuffledTable(Numbers([5, 6]), seed=0)
    assert (source.name, source.fingerprint) == ("numbers 0", "[5, 6]")


def test_documents_are_looked_up_ahead_but_read_when_they_are_due() -> None:
    seen: list[int] = []

    class Watched(Numbers):
        def __getitem__(self, index: int) -> Document:
            seen.append(index)
            return Document(np.zeros(1, dtype=np.uint16))

    read(open_reader(Watched([1] * 2000)), 3000)
    order = EpochOrder(num_documents=2000, seed=7)
    assert seen == [order.document(i // 2000, i % 2000) for i in range(3000)]
