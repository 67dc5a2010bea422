"""Laws of reading documents by index: lanes split them, and any cursor continues."""

from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document
from flame_accel.data.lanes.epoch_order import EpochOrder
from tests.helpers.numbered_documents import Numbers, documents_of
from tests.helpers.table_readers import HELD_OUT, Records, open_reader, read


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
        assert [reader.approximate_epochs_read for reader in readers] == [epoch] * 4


def test_the_epoch_is_a_fraction_of_the_lanes_documents() -> None:
    reader = open_reader(Numbers([5] * 8), num_lanes=2)
    read(reader, 5)
    assert reader.approximate_epochs_read == 1.25
    assert reader.cursor == SourceCursor(position=(1, 1), consumed=5, tokens=25)


def test_peek_stays_at_a_document_until_advance() -> None:
    reader = open_reader(Numbers([5] * 3))
    assert reader.peek() is reader.peek()
    assert reader.cursor.consumed == 0


def test_one_text_among_many_records_is_found_by_every_lane() -> None:
    records = Records(40, {i: HELD_OUT for i in range(40) if i != 11})
    for lane in range(40):
        reader = open_reader(records, lane=lane, num_lanes=40)
        assert reader.peek().tokens[0] == 11_000


def test_documents_are_looked_up_ahead_but_read_when_they_are_due() -> None:
    seen: list[int] = []

    class Watched(Numbers):
        def __getitem__(self, index: int) -> Document:
            seen.append(index)
            return Document(np.zeros(1, dtype=np.uint16))

    read(open_reader(Watched([1] * 2000)), 3000)
    order = EpochOrder(num_documents=2000, seed=7)
    assert seen == [order.document_index_at(i // 2000, i % 2000) for i in range(3000)]
