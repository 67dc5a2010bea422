"""Cursors: where a lane stands in its sources and in its rows, as a few integers.

A checkpoint stores them (see `loading.stream_state`); the readers in `lanes` interpret them.
"""

from typing import NamedTuple

SourcePosition = tuple[int, ...]
"""Where a reader stands in a source, in the form that it defines; empty: the start."""


class SourceCursor(NamedTuple):
    """Where a lane stands in one source, at the start of a document; integers in JSON."""

    position: SourcePosition = ()
    consumed: int = 0
    """Number of documents used so far."""
    skipped: int = 0
    """Number of records skipped so far; with `consumed`, all records that were read."""
    bad: int = 0
    """Number of the skipped records that count against `training.max_bad_records`."""
    tokens: int = 0
    """Number of tokens in the documents used so far."""


class LaneCursor(NamedTuple):
    """Where the next row of a lane starts; integers in JSON."""

    source: int = 0
    """Index of the source whose document the row starts in, if `offset` is not 0."""
    offset: int = 0
    """Token of that document the row starts with; 0: the next document is yet to be chosen."""
    row: int = 0
    """Rows already returned of the window that starts at this cursor; best-fit packing only."""
    sources: tuple[SourceCursor, ...] = ()
    """One cursor per source."""
