"""Laws of a mixture: at every prefix each source has its share of the tokens, to one document."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.lanes.mixture import choose_source
from flame_accel.data.lanes.rows import Packing
from tests.helpers.numbered_documents import Numbers, lane_cases, open_lane

SHARES = st.floats(1e-9, 1e9)
LENGTHS = st.integers(1, 50) | st.integers(1, 50_000) | st.just(10**9)


@given(st.data(), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_every_prefix_keeps_to_the_shares_within_one_document(
    data: st.DataObject, num_sources: int
) -> None:
    shares = data.draw(st.lists(SHARES, min_size=num_sources, max_size=num_sources))
    queues = [data.draw(st.lists(LENGTHS, min_size=1, max_size=8)) for _ in shares]
    exact = [Fraction(share) / sum(map(Fraction, shares)) for share in shares]
    tokens, read = [0] * num_sources, [0] * num_sources
    longest = max(queue[0] for queue in queues)
    for _ in range(100):
        heads = [queue[n % len(queue)] for queue, n in zip(queues, read, strict=True)]
        longest = max(longest, *heads)
        source = choose_source(shares, tokens, heads)
        tokens[source] += heads[source]
        read[source] += 1
        for share, given_tokens in zip(exact, tokens, strict=True):
            assert abs(given_tokens - share * sum(tokens)) <= longest


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
@settings(max_examples=100, deadline=None)
def test_equal_documents_come_to_their_shares_after_each_round(parts: list[int]) -> None:
    tokens = [0] * len(parts)
    for _ in range(3 * sum(parts)):
        # tenths are no binary fractions: rounded comparisons would go wrong here
        tokens[choose_source([part / 10 for part in parts], tokens, [7] * len(parts))] += 7
    assert all(abs(n - 21 * part) <= 7 for n, part in zip(tokens, parts, strict=True))


@pytest.mark.parametrize(
    ("shares", "lengths", "expected"),
    [
        ((1.0,), (5,), "0000"),
        ((0.5, 0.5), (5, 5), "01010101"),
        ((0.75, 0.25), (5, 5), "01000100"),
        ((0.5, 0.25, 0.25), (5, 5, 5), "01020102"),
        ((0.5, 0.5), (10, 5), "10110110"),
    ],
)
def test_documents_take_turns(shares: tuple, lengths: tuple, expected: str) -> None:
    tokens, order = [0] * len(shares), ""
    for _ in expected:
        source = choose_source(shares, tokens, lengths)
        tokens[source] += lengths[source]
        order += str(source)
    assert order == expected


def test_rounding_leaves_some_source_to_choose() -> None:
    # 1 / 49 * 49 is less than 1: as rounded, all 49 would have had too much
    assert choose_source([1 / 49] * 49, [1] * 49, [1] * 49) == 0


@given(lane_cases(), st.integers(1, 80))
@settings(max_examples=100, deadline=None)
def test_what_a_lane_has_used_up_keeps_to_the_shares(case: dict, num_rows: int) -> None:
    lane = open_lane(**case)
    shares = case["shares"]
    for _ in range(num_rows):
        lane.next_row()
        tokens = [cursor.tokens for cursor in lane.cursor.sources]
        for share, used in zip(shares, tokens, strict=True):
            # documents have 40 tokens at most
            assert abs(used - share / sum(shares) * sum(tokens)) <= 40 + 1e-6


def test_shares_need_not_add_up_to_one() -> None:
    sources = [Numbers([5] * 9), Numbers([5] * 9, source=1)]
    lanes = [
        open_lane(sources, Packing(seq_len=16), shares=shares) for shares in ((3, 1), (0.75, 0.25))
    ]
    for _ in range(10):
        assert lanes[0].next_row().tokens.tolist() == lanes[1].next_row().tokens.tolist()
