"""Traced rows are the rows of the lane, and their pieces name the right tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.lanes.lane import build_lane
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.row_tracing import TracedLane
from tests.helpers.traced_rows import PACKINGS, ROW, LetterDocuments, open_only_reader, trace_rows


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 70), min_size=3, max_size=9), min_size=1, max_size=3)
)
def test_traced_rows_are_the_rows_of_the_lane(packing, lengths):
    sources = [ShuffledTable(LetterDocuments([*of, 5]), seed=s) for s, of in enumerate(lengths)]
    shares = [1.0, 2.5, 0.5][: len(sources)]
    readers = [open_only_reader(source) for source in sources]
    lane = build_lane(
        readers, shares, packing, LaneCursor(sources=(SourceCursor(),) * len(sources))
    )
    traced = TracedLane([open_only_reader(source) for source in sources], shares, packing, 0)
    for _ in range(40):
        found, row = traced.next_row(), lane.next_row()
        assert np.array_equal(found.tokens, row.tokens)
        targets = np.ones(ROW, dtype=bool) if row.targets is None else row.targets.copy()
        targets[row.starts] = False
        assert np.array_equal(found.targets, targets)
        assert [piece.start for piece in found.pieces if piece.starts_segment] == row.starts
        assert np.array_equal(np.concatenate([p.tokens for p in found.pieces]), row.tokens)
        padding = sum(len(piece.tokens) for piece in found.pieces if piece.document is None)
        assert padding == row.padding


def test_pieces_say_where_their_tokens_stand_in_the_document():
    first, second = trace_rows([10, 0, 50], PACKINGS["rows"], 2)
    shown = [
        (p.start, p.starts_segment, p.offset, p.end_in_document, p.document_length)
        for p in first.pieces
    ]
    assert shown == [(0, True, 0, 10, 10), (10, False, 0, 22, 50)]
    shown = [
        (p.start, p.starts_segment, p.offset, p.end_in_document, p.document_length)
        for p in second.pieces
    ]
    assert shown == [(0, True, 21, 50, 50), (29, False, 0, 3, 10)]
