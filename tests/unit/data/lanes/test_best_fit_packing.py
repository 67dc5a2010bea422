"""Laws of best-fit packing: no target lost or doubled, nothing cut that fits, little padding."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.cursors import LaneCursor
from flame_accel.data.documents import Document
from flame_accel.data.lanes.best_fit_packing import Segment, Window
from flame_accel.data.lanes.lane import Lane
from flame_accel.data.lanes.rows import Packing, Row
from tests.helpers.numbered_documents import (
    SEED,
    Numbers,
    documents_of,
    lane_cases,
    open_lane,
    pairs_in,
    pairs_of,
)

BEST_FIT = lane_cases(best_fit=True)


def next_window(lane: Lane) -> list[Row]:
    rows = [lane.next_row()]
    while lane.cursor.row:
        rows.append(lane.next_row())
    return rows


@given(BEST_FIT, st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_whole_windows_hold_each_target_of_their_documents_once(case: dict, windows: int) -> None:
    lane = open_lane(**case)
    found = Counter(
        pair for _ in range(windows) for row in next_window(lane) for pair in pairs_in(row)
    )
    expected: Counter[tuple[int, int]] = Counter()
    for i, (documents, cursor) in enumerate(zip(case["sources"], lane.cursor.sources, strict=True)):
        way = documents_of(documents, case["lane"], case["num_lanes"], SEED + i)
        for document in islice(way, cursor.consumed):
            expected.update(pairs_of(document))
    assert found == expected


@given(BEST_FIT)
@settings(max_examples=60, deadline=None)
def test_only_documents_longer_than_the_context_are_cut(case: dict) -> None:
    packing = case["packing"]
    for row in next_window(open_lane(**case)):
        assert (row.tokens.shape, row.tokens.dtype) == ((packing.seq_len,), np.int32)
        segments = np.split(row.tokens, row.starts[1:])
        assert (row.tokens == packing.padding).sum() == row.padding
        if row.padding:
            *segments, padding = segments
            assert padding.tolist() == [packing.padding] * row.padding
            assert row.targets is not None
            assert not row.targets[len(row.tokens) - row.padding :].any()
        for segment in segments:
            assert len(segment) <= packing.context_len
            assert (np.diff(segment) == 1).all()
            source, number = divmod(int(segment[0]), 1_000_000)
            document = case["sources"][source][number // 1000]
            assert isinstance(document, Document)
            assert len(segment) == len(document.tokens) or len(document.tokens) > len(segment)
            if len(document.tokens) <= packing.context_len:
                assert segment.tolist() == document.tokens.tolist()


def document(length: int) -> Document:
    return Document(np.zeros(length, dtype=np.int32))


def lengths_of(row: list[Segment]) -> list[int]:
    return [segment.stop - segment.start for segment in row]


def pack(lengths: list[int], seq_len: int = 10) -> list[list[int]]:
    window = Window(seq_len, seq_len)
    for length in lengths:
        window.add_document(document(length))
    return [lengths_of(row) for row in window.assign_segments_to_rows()]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        # the row with the least room, and rows in the order of their longest pieces
        ([1, 2, 6, 3, 8], [[6, 3, 1], [8, 2]]),
        ([5, 5, 5], [[5, 5], [5]]),
        # cut with one token of overlap; what is left over is a piece like any other
        ([4, 25], [[4], [10], [10], [7]]),
        ([2, 25], [[10], [10], [7, 2]]),
        ([10, 11], [[10], [10], [2]]),
        ([1], [[1]]),
    ],
)
def test_pieces_go_where_the_least_room_is_left(lengths: list[int], rows: list[list[int]]) -> None:
    assert pack(lengths) == rows


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_two_rows_could_have_been_one(lengths: list[int]) -> None:
    filled = sorted(sum(row) for row in pack(lengths))
    assert filled[-1] <= 10
    assert len(filled) == 1 or filled[0] + filled[1] > 10


@pytest.mark.parametrize("mean", [200, 500, 1000, 2000])
def test_rows_are_nearly_full(mean: int) -> None:
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1.0, 3000)

    class Blank(Numbers):
        def __getitem__(self, index: int) -> Document:
            return document(max(1, int(drawn[index])))

    packing = Packing(seq_len=2048, context_len=2048, best_fit=True)
    lane = open_lane([Blank([1] * len(drawn))], packing)
    padding = sum(lane.next_row().padding for _ in range(260))
    assert padding < 0.02 * 260 * 2048


def test_rows_of_long_documents_do_not_come_first() -> None:
    lengths = np.random.default_rng(0).permuted([30] * 100 + [5] * 600).tolist()
    lane = open_lane([Numbers(lengths)], Packing(seq_len=32, context_len=32, best_fit=True))
    rows = next_window(lane)
    is_long = [row.starts == [0, 30] for row in rows]
    half = len(rows) // 2
    assert 0.5 < sum(is_long[:half]) / sum(is_long[half:]) < 2


def test_the_next_window_is_read_bit_by_bit() -> None:
    num_read = 0

    class Counting(Numbers):
        def __getitem__(self, index: int) -> Document:
            nonlocal num_read
            num_read += 1
            return document(8)

    packing = Packing(seq_len=64, context_len=64, best_fit=True)
    lane = open_lane([Counting([8] * 50)], packing)
    rows = next_window(lane)
    for _ in range(3 * len(rows)):
        before = num_read
        lane.next_row()
        assert num_read - before <= 16


def test_a_window_begins_where_the_last_one_ended() -> None:
    lane = open_lane([Numbers([7] * 30)], Packing(seq_len=8, context_len=8, best_fit=True))
    start = lane.cursor
    for row in range(1, 20):
        lane.next_row()
        assert lane.cursor == start._replace(row=row)
    while lane.cursor.row:
        lane.next_row()
    (cursor,) = lane.cursor.sources
    assert lane.cursor == LaneCursor(sources=(cursor,))
    assert cursor.tokens == 7 * cursor.consumed > 0
