"""Laws of a lane: nothing is dropped, every token is a target once, any cursor continues it.

Documents are numbers: token ``o`` of document ``d`` is ``1000 d + o``.
"""

from collections.abc import Callable, Iterator
from itertools import chain, count, islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.lanes.lane import Cursor, Lane, Packing, Row, lane_length
from flame_accel.data.lanes.order import EpochOrder
from flame_accel.data.loading.micro_batch import IGNORED_LABEL, build_micro_batch


def numbers(lengths: list[int]) -> Callable[[int], np.ndarray]:
    return lambda d: np.arange(1000 * d, 1000 * d + lengths[d], dtype=np.int32)


def make_lane(
    lengths: list[int],
    packing: Packing,
    *,
    lane: int = 0,
    num_lanes: int = 1,
    cursor: Cursor | None = None,
) -> Lane:
    order = EpochOrder(num_documents=len(lengths), seed=7)
    return Lane(
        numbers(lengths),
        order,
        packing,
        lane=lane,
        num_lanes=num_lanes,
        cursor=cursor or Cursor(),
    )


def documents_of(lengths: list[int], lane: int, num_lanes: int) -> Iterator[list[int]]:
    """What the lane must read: its documents in the order of its epochs."""
    order = EpochOrder(num_documents=len(lengths), seed=7)
    for epoch in count():
        for position in range(lane, len(lengths), num_lanes):
            d = order.document(epoch, position)
            if lengths[d]:
                yield list(range(1000 * d, 1000 * d + lengths[d]))


def pairs(rows: list[Row], packing: Packing) -> list[tuple[int, int]]:
    """(token before, target) as a model computes them: labels shifted by one inside the batch."""
    batch = build_micro_batch(rows, packing)
    before = batch["input_ids"][:, :-1].flatten().tolist()
    targets = batch["labels"][:, 1:].flatten().tolist()
    assert batch["num_targets"] == sum(target != IGNORED_LABEL for target in targets)
    return [pair for pair in zip(before, targets, strict=True) if pair[1] != IGNORED_LABEL]


@st.composite
def lane_cases(draw: st.DrawFn) -> dict:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    num_lanes = draw(st.integers(1, len(lengths)))
    seq_len = draw(st.integers(2, 17))
    return {
        "lengths": lengths,
        "num_lanes": num_lanes,
        "lane": draw(st.integers(0, num_lanes - 1)),
        "seq_len": seq_len,
        "context_len": draw(st.none() | st.integers(2, seq_len)),
        "num_rows": draw(st.integers(1, 25)),
    }


@given(lane_cases())
@settings(max_examples=300, deadline=None)
def test_every_token_but_the_first_is_a_target_once_and_in_order(case: dict) -> None:
    packing = Packing(seq_len=case["seq_len"], context_len=case["context_len"])
    place = {"lane": case["lane"], "num_lanes": case["num_lanes"]}
    lane = make_lane(case["lengths"], packing, **place)
    rows = [lane.next_row() for _ in range(case["num_rows"])]

    found = pairs(rows, packing)
    documents = documents_of(case["lengths"], **place)
    if packing.varlen:
        expected = (pair for document in documents for pair in pairwise(document))
    else:
        expected = pairwise(token for document in documents for token in document)
    assert found == list(islice(expected, len(found)))
    if not packing.varlen:
        assert len(found) == case["num_rows"] * (case["seq_len"] - 1)


@given(lane_cases())
@settings(max_examples=150, deadline=None)
def test_rows_are_full_and_segments_keep_to_the_context(case: dict) -> None:
    packing = Packing(seq_len=case["seq_len"], context_len=case["context_len"])
    lane = make_lane(case["lengths"], packing, lane=case["lane"], num_lanes=case["num_lanes"])
    for _ in range(case["num_rows"]):
        tokens, starts = lane.next_row()
        assert tokens.shape == (case["seq_len"],)
        assert starts[0] == 0
        segments = np.split(tokens, starts[1:])
        if packing.varlen:
            assert all(1 <= len(s) <= case["context_len"] for s in segments)
            # tokens of one document are consecutive numbers
            assert all((np.diff(segment) == 1).all() for segment in segments)
        else:
            assert len(segments) == 1


@given(lane_cases(), st.data())
@settings(max_examples=200, deadline=None)
def test_any_cursor_continues_the_lane(case: dict, data: st.DataObject) -> None:
    packing = Packing(seq_len=case["seq_len"], context_len=case["context_len"])
    place = {"lane": case["lane"], "num_lanes": case["num_lanes"]}
    lengths = case["lengths"]
    if data.draw(st.booleans(), label="with empty documents"):
        lengths = [0 if i % 3 == 2 else length for i, length in enumerate(lengths)]
    whole = make_lane(lengths, packing, **place)
    rows, cursors = [], [whole.cursor]
    for _ in range(case["num_rows"]):
        rows.append(whole.next_row())
        cursors.append(whole.cursor)
    cut = data.draw(st.integers(0, case["num_rows"] - 1), label="cut")
    resumed = make_lane(lengths, packing, **place, cursor=cursors[cut])
    for row, cursor in zip(rows[cut:], cursors[cut + 1 :], strict=True):
        again = resumed.next_row()
        assert again.tokens.tolist() == row.tokens.tolist()
        assert (again.starts, resumed.cursor) == (row.starts, cursor)


def test_a_long_document_is_cut_with_one_token_of_overlap() -> None:
    lane = make_lane([10], Packing(seq_len=4, context_len=4))
    assert [lane.next_row().tokens.tolist() for _ in range(4)] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
        [0, 1, 2, 3],
    ]
    assert lane.cursor == Cursor(epoch=1, position=0, offset=3)


def test_a_first_token_alone_at_the_end_of_a_row_comes_again() -> None:
    lane = make_lane([3], Packing(seq_len=4, context_len=4))
    first, second = lane.next_row(), lane.next_row()
    assert (first.tokens.tolist(), first.starts) == ([0, 1, 2, 0], [0, 3])
    assert (second.tokens.tolist(), second.starts) == ([0, 1, 2, 0], [0, 3])


def test_lanes_share_the_documents_out() -> None:
    lengths = [5] * 11
    seen = [
        d[0] // 1000
        for lane in range(4)
        for d in islice(documents_of(lengths, lane, 4), lane_length(11, lane, 4))
    ]
    assert sorted(seen) == list(range(11))


def test_documents_without_tokens_are_passed_over_and_counted() -> None:
    lengths = [0, 6, 0, 6, 0]
    lane = make_lane(lengths, Packing(seq_len=13))
    tokens = lane.next_row().tokens.tolist()
    assert tokens[:12] == [*chain(*islice(documents_of(lengths, 0, 1), 2))]
    # the thirteenth token lies in the second epoch, behind all three of the first
    assert lane.cursor.epoch == 1
    assert 3 <= lane.cursor.skipped <= 6


def test_data_without_any_token_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(UserError, match="no text in 100 passes over 3 documents"):
        make_lane([0, 0, 0], Packing(seq_len=4)).next_row()


def test_a_cursor_behind_the_end_of_its_document_is_an_error() -> None:
    lane = make_lane([5], Packing(seq_len=4), cursor=Cursor(0, 0, 5))
    with pytest.raises(UserError, match="document 0 has 5 tokens, but the next is 5"):
        lane.next_row()
