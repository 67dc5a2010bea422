"""Arguments of commands are whole numbers from a minimum on."""

import argparse

import pytest

from flame_accel.commands.arguments import argparse_integer_at_least


@pytest.mark.parametrize(("word", "expected"), [("1", 1), ("12", 12), ("007", 7)])
def test_a_whole_number_from_the_minimum_on_is_taken(word, expected):
    assert argparse_integer_at_least(1)(word) == expected


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "", "many", "1e3"])
def test_anything_else_is_refused_with_the_rule(word):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a whole number >= 1"):
        argparse_integer_at_least(1)(word)
