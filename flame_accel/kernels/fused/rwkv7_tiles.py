"""How the kernels of RWKV-7's heads share their rows: a program has some rows of one head.

Shapes: M rows of H heads of V channels.
"""

from flame_accel.kernels.fused.row_tiles import (
    ProgramSplit,
    rows_of_tile,
    split_rows_among_programs,
)

BACKWARD_PROGRAMS = 2048
"""Programs of a backward pass, each with a part of the weights' gradients."""
BACKWARD_WARPS = 8
"""With four, a thread of a backward pass holds over 200 registers."""


def split_rows_of_head(m: int, n: int, head_width: int) -> ProgramSplit:
    """Of `m` rows of `n` channels, among the programs of a head, for a backward pass."""
    most_programs = max(1, BACKWARD_PROGRAMS * head_width // n)
    return split_rows_among_programs(m, rows_of_tile(head_width), most_programs)
