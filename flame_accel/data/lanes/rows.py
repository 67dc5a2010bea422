"""The row that a lane gives to one step, and the settings of how documents fill it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How documents fill rows."""

    seq_len: int
    """T, tokens in a row; at least 2."""
    context_len: int | None = None
    """Longest segment in tokens, at least 2; None: a row is one segment of successive documents."""
    best_fit: bool = False
    """Cut only documents that are longer than a segment, and pad rows; needs `context_len`."""
    padding: int = 0
    """Token id of padding; rows are padded with `best_fit` only."""

    @property
    def varlen(self) -> bool:
        """Whether documents are kept apart: neither state nor targets cross their boundaries."""
        return self.context_len is not None


class Row(NamedTuple):
    """The row that a lane gives to one step."""

    tokens: np.ndarray
    """int32 [T]."""
    starts: list[int]
    """Where segments start, the first at 0: state and targets do not cross them."""
    targets: np.ndarray | None = None
    """bool [T], the tokens that the loss is computed for, apart from the first of each segment;
    None: all of them."""
    padding: int = 0
    """Number of padding tokens at the end: a segment of its own, without targets."""
