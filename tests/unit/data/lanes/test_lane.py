"""Laws of a lane: any cursor continues it, and its counters add up."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from tests.helpers.numbered_documents import (
    Numbers,
    lane_cases,
    open_lane,
    same,
    through_json,
)


@given(lane_cases(), st.data())
@settings(max_examples=200, deadline=None)
def test_any_cursor_continues_the_lane(case: dict, data: st.DataObject) -> None:
    whole = open_lane(**case)
    # with best-fit packing a window has 64 rows: behind the first now and then
    num_rows = data.draw(st.integers(1, 25) | st.integers(60, 75), label="rows")
    rows, cursors = [], [whole.cursor]
    for _ in range(num_rows):
        rows.append(whole.next_row())
        cursors.append(whole.cursor)
    cut = data.draw(st.integers(0, num_rows - 1), label="cut")
    resumed = open_lane(**case, cursor=through_json(cursors[cut]))
    assert resumed.cursor == cursors[cut]
    for row, cursor in zip(rows[cut:], cursors[cut + 1 :], strict=True):
        assert same(resumed.next_row(), row)
        assert resumed.cursor == cursor


@given(lane_cases(), st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_consumed_and_skipped_are_all_that_was_read(case: dict, num_rows: int) -> None:
    lane = open_lane(**case)
    for _ in range(num_rows):
        lane.next_row()
    for documents, cursor in zip(case["sources"], lane.cursor.sources, strict=True):
        epoch, position = cursor.position
        length = len(range(case["lane"], len(documents), case["num_lanes"]))
        assert cursor.consumed + cursor.skipped == epoch * length + position


def test_a_cursor_names_the_source_of_the_document_under_way() -> None:
    lane = open_lane([Numbers([9]), Numbers([9], source=1)], Packing(seq_len=12), shares=(1, 1))
    assert lane.next_row().tokens.tolist() == [*range(9), 1_000_000, 1_000_001, 1_000_002]
    assert (lane.cursor.source, lane.cursor.offset) == (1, 2)
    assert [cursor.tokens for cursor in lane.cursor.sources] == [9, 0]


def test_more_lanes_than_documents_are_refused_with_both_numbers() -> None:
    lanes = Lanes(
        sources=[ShuffledTable(Numbers([5] * 7), seed=0)],
        shares=[1.0],
        packing=Packing(seq_len=8),
        num_lanes=7,
        policy=SkipPolicy(),
    )
    lanes.check_enough_records_if_known()
    with pytest.raises(UserError, match="7 documents are fewer than the 8 rows of a step"):
        replace(lanes, num_lanes=8).check_enough_records_if_known()
