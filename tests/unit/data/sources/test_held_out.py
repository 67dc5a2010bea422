"""Every document is on one side of the split, by its hash alone."""

from hypothesis import given
from hypothesis import strategies as st

from flame_accel.data.documents import Skipped
from flame_accel.data.sources.held_out import HeldOut, is_held_out
from flame_accel.data.sources.record_hashes import record_hash


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


def test_what_is_skipped_stays_so():
    skipped = Skipped("empty", "here", "why")
    assert HeldOut(0.5, "training")(skipped) is skipped
