"""Distances between names, and what counts as near."""

import pytest

from flame_accel.config.suggestions import edit_distance, nearest_option_name, nearest_text


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "acb", 1), ("ab", "", 2)],
)
def test_edits_are_counted(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b, 5) == edit_distance(b, a, 5) == distance


def test_beyond_the_limit_the_distance_is_only_larger_than_it() -> None:
    assert edit_distance("abcdefgh", "ijklmnop", 2) > 2
    assert edit_distance("a", "abcdefgh", 2) > 2


def test_the_nearest_option_may_be_in_another_section() -> None:
    names = ["optimizer.lr", "training.seq_len", "training.steps"]
    assert nearest_option_name("training.lr", names) == "optimizer.lr"
    assert nearest_option_name("training.stpes", names) == "training.steps"
    assert nearest_option_name("seq_len", names) == "training.seq_len"
    assert nearest_option_name("something.else", names) is None


def test_case_does_not_count_in_texts() -> None:
    assert nearest_text("ADAMW", ["Adam", "AdamW"]) == "AdamW"
    assert nearest_text("exponential", ["wsd", "cosine"]) is None
