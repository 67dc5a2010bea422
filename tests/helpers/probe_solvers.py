"""Solvers of tasks that are made of token ids: they know the rule, not the code of the documents.

Each takes the tokens of a document and the position of an answer, and reads only what is before it.
"""

from collections.abc import Callable
from typing import NamedTuple


class SolvedTask(NamedTuple):
    """A task, how it is solved, and what a guess can be."""

    name: str
    solve: Callable[[list[int], int], int]
    answers: int
    """Number of target tokens in a document."""
    choices: int
    """Number of values that an answer can have."""


def solve_mqar(tokens: list[int], at: int) -> int:
    """The value behind the only earlier place of the key."""
    (place,) = [i for i in range(at - 1) if tokens[i] == tokens[at - 1]]
    return tokens[place + 1]


def solve_sum(modulus: int) -> Callable[[list[int], int], int]:
    """The sum of what stands before the marker."""
    return lambda tokens, at: sum(tokens[: at - 1]) % modulus


def solve_copying(marker: int) -> Callable[[list[int], int], int]:
    """The n-th token that is no noise, n places behind the marker."""

    def solve(tokens: list[int], at: int) -> int:
        place = tokens.index(marker)
        return [token for token in tokens[:place] if token][at - place - 1]

    return solve


ID_TASKS = (
    SolvedTask("synthetic:mqar:vocab=64:pairs=8:length=40", solve_mqar, 8, 32),
    SolvedTask("synthetic:mqar:vocab=64:pairs=8:length=64:filler=zero:power=1", solve_mqar, 8, 32),
    SolvedTask("synthetic:modular_addition:modulus=7:length=20", solve_sum(7), 1, 7),
    SolvedTask("synthetic:parity", solve_sum(2), 1, 2),
    SolvedTask("synthetic:selective_copying:vocab=9:tokens=5:length=30", solve_copying(9), 5, 8),
)
