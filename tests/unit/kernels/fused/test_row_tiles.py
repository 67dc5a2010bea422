"""Rows are shared among programs so that each row has one, in tiles of a power of two."""

import pytest

from flame_accel.kernels.fused.row_tiles import (
    TILE,
    split_rows_among_programs,
    tile_of_whole_rows,
)


@pytest.mark.parametrize("length", [1, 3, 64, 1000, 4096])
def test_a_tile_holds_whole_rows_in_powers_of_two(length):
    columns, rows = tile_of_whole_rows(length)
    assert length <= columns < 2 * length or length == columns == 1
    assert columns & (columns - 1) == rows & (rows - 1) == 0
    assert rows == 1 or rows * columns <= TILE


@pytest.mark.parametrize(
    ("m", "rows", "most"), [(1, 4, 10), (100, 4, 10), (1000, 1, 7), (40, 4, 10)]
)
def test_no_more_programs_than_allowed_cover_all_rows_and_none_is_idle(m, rows, most):
    programs, tiles = split_rows_among_programs(m, rows, most)
    assert programs <= most
    assert (programs - 1) * tiles * rows < m <= programs * tiles * rows
