"""Laws of sequential packing: nothing is dropped, every token is a target once and in order."""

from collections.abc import Iterator
from itertools import chain, islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document
from flame_accel.data.lanes.mixture import choose_source
from flame_accel.data.lanes.rows import Packing
from tests.helpers.numbered_documents import (
    SEED,
    Numbers,
    documents_of,
    lane_cases,
    open_lane,
    pairs_in,
    pairs_of,
)

SEQUENTIAL = lane_cases(best_fit=False)


def mixed_documents(case: dict) -> Iterator[Document]:
    """What a lane must read of all its sources together."""
    ways = [
        documents_of(documents, case["lane"], case["num_lanes"], SEED + i)
        for i, documents in enumerate(case["sources"])
    ]
    heads = [next(way) for way in ways]
    tokens = [0] * len(heads)
    while True:
        source = choose_source(case["shares"], tokens, [len(head.tokens) for head in heads])
        yield heads[source]
        tokens[source] += len(heads[source].tokens)
        heads[source] = next(ways[source])


def all_pairs(case: dict) -> Iterator[tuple[int, int]]:
    """Every (token before, target) of the lane, in order, whatever the rows."""
    documents = mixed_documents(case)
    if case["packing"].varlen:
        yield from chain.from_iterable(map(pairs_of, documents))
    tokens = chain.from_iterable(
        zip(
            document.tokens.tolist(),
            [True] * len(document.tokens) if document.targets is None else document.targets,
            strict=True,
        )
        for document in documents
    )
    for (before, _), (token, wanted) in pairwise(tokens):
        if wanted:
            yield before, token


@given(SEQUENTIAL, st.integers(1, 25))
@settings(max_examples=200, deadline=None)
def test_every_token_but_the_first_is_a_target_once_and_in_order(case: dict, num_rows: int) -> None:
    lane = open_lane(**case)
    found = [pair for _ in range(num_rows) for pair in pairs_in(lane.next_row())]
    assert found == list(islice(all_pairs(case), len(found)))


@given(SEQUENTIAL, st.integers(1, 25))
@settings(max_examples=100, deadline=None)
def test_rows_are_full_and_segments_keep_to_the_context(case: dict, num_rows: int) -> None:
    packing = case["packing"]
    lane = open_lane(**case)
    for _ in range(num_rows):
        row = lane.next_row()
        assert (row.tokens.shape, row.tokens.dtype) == ((packing.seq_len,), np.int32)
        assert (row.starts[0], row.padding) == (0, 0)
        segments = np.split(row.tokens, row.starts[1:])
        if packing.varlen:
            assert all(1 <= len(segment) <= packing.context_len for segment in segments)
            # tokens of one document are consecutive numbers
            assert all((np.diff(segment) == 1).all() for segment in segments)
        else:
            assert len(segments) == 1


@given(SEQUENTIAL, st.integers(1, 25))
@settings(max_examples=100, deadline=None)
def test_rows_have_targets_where_one_of_their_documents_has_any(case: dict, num_rows: int) -> None:
    lane = open_lane(**case)
    for _ in range(num_rows):
        row = lane.next_row()
        sources, numbers = np.divmod(row.tokens, 1_000_000)
        documents = [case["sources"][s][d] for s, d in zip(sources, numbers // 1000, strict=True)]
        has_any = any(document.targets is not None for document in documents)
        assert (row.targets is not None) == has_any


def test_a_long_document_is_cut_with_one_token_of_overlap() -> None:
    lane = open_lane([Numbers([10])], Packing(seq_len=4, context_len=4))
    assert [lane.next_row().tokens.tolist() for _ in range(4)] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
        [0, 1, 2, 3],
    ]
    place = SourceCursor(position=(1, 0), consumed=1, tokens=10)
    assert lane.cursor == LaneCursor(offset=3, sources=(place,))


def test_a_first_token_alone_at_the_end_of_a_row_comes_again() -> None:
    lane = open_lane([Numbers([3])], Packing(seq_len=4, context_len=4))
    first, second = lane.next_row(), lane.next_row()
    assert (first.tokens.tolist(), first.starts) == ([0, 1, 2, 0], [0, 3])
    assert (second.tokens.tolist(), second.starts) == ([0, 1, 2, 0], [0, 3])


def test_a_cursor_behind_the_end_of_its_document_is_an_error() -> None:
    cursor = LaneCursor(offset=5, sources=(SourceCursor(),))
    with pytest.raises(UserError, match="a document has 5 tokens, but the next is 5"):
        open_lane([Numbers([5])], Packing(seq_len=4), cursor=cursor).next_row()


def test_a_cursor_behind_the_end_of_its_window_is_an_error() -> None:
    cursor = LaneCursor(row=1000, sources=(SourceCursor(),))
    packing = Packing(seq_len=4, context_len=4, best_fit=True)
    with pytest.raises(UserError, match=r"a window has \d+ rows, but the next is 1000"):
        open_lane([Numbers([5])], packing, cursor=cursor).next_row()
