"""How the programs of a kernel share the rows of a matrix: each has tiles of some rows.

Only numbers; the kernels are in the modules that launch them.
"""

from typing import NamedTuple

TILE = 2048
"""Elements that a program works on at a time, where rows are narrower."""


class TileShape(NamedTuple):
    """Powers of two."""

    columns: int
    rows: int


def tile_of_whole_rows(row_length: int) -> TileShape:
    """Rows with all of their channels, padded to a power of two."""
    columns = 1 << (row_length - 1).bit_length()
    return TileShape(columns, rows_of_tile(columns))


def rows_of_tile(columns: int) -> int:
    """Rows of so many channels that a program works on at a time."""
    return max(1, TILE // columns)


def num_warps_for(elements: int) -> int:
    """16 elements for each thread."""
    return min(16, max(4, elements // 512))


class ProgramSplit(NamedTuple):
    """How rows are shared among programs."""

    programs: int
    tiles: int
    """Of each program, one after the other."""


def split_rows_among_programs(m: int, rows: int, most_programs: int) -> ProgramSplit:
    """Of `m` rows in tiles of `rows`, for a backward pass: each program adds up a gradient."""
    num_tiles = -(-m // rows)
    tiles = -(-num_tiles // most_programs)
    return ProgramSplit(-(-num_tiles // tiles), tiles)
