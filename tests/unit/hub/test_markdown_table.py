"""Tables of a card: rows without a value are left out, and numbers are short."""

import pytest

from flame_accel.hub.markdown_table import (
    format_four_digits_nan_or_inf,
    format_integer,
    format_titled_table,
)


def test_rows_without_a_value_are_left_out_and_with_none_the_table():
    table = format_titled_table("## T", [("a|b", "x|y"), ("c", None)])
    assert table == "## T\n\n| | |\n|---|---|\n| a|b | x\\|y |\n"
    assert format_titled_table("## T", [("c", None)]) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(None, None), (1234.5, "1,234"), (0.1 + 0.2, "0.3"), (float("nan"), "nan")]
)
def test_numbers_have_four_digits_and_what_is_not_finite_is_said(value, text):
    assert format_four_digits_nan_or_inf(value) == text


def test_only_integers_are_counts():
    assert (format_integer(1_234_567), format_integer(None), format_integer("7")) == (
        "1,234,567",
        None,
        None,
    )
