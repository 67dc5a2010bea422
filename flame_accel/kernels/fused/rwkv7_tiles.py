"""How the kernels of RWKV-7's heads share their rows: a program has some rows of one head.

Shapes: M rows of H heads of V channels.
"""

from typing import NamedTuple

TILE = 2048
"""Elements that a program works on at a time."""
BACKWARD_PROGRAMS = 2048
"""Programs of a backward pass, each with a part of the weights' gradients."""
BACKWARD_WARPS = 8
"""With four, a thread of a backward pass holds over 200 registers."""


def rows_of_tile(head_width: int) -> int:
    """Rows of a head that a program works on at a time."""
    return max(1, TILE // head_width)


class BackwardSplit(NamedTuple):
    """How rows are shared among the programs of a head."""

    programs: int
    tiles: int
    rows: int


def split_rows_into_programs(m: int, n: int, head_width: int) -> BackwardSplit:
    """Of `m` rows of `n` channels, for a backward pass."""
    rows = rows_of_tile(head_width)
    num_tiles = -(-m // rows)
    tiles = -(-num_tiles // max(1, BACKWARD_PROGRAMS * head_width // n))
    return BackwardSplit(-(-num_tiles // tiles), tiles, rows)
