"""Packed rows as text: each piece of a document with its place, its text and what the loss is for.

Where tokens are from is `data.summary`'s part.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flame_accel.commands.data.tracing import Piece, TracedRow

WIDTH = 78
"""Columns of a line: a screen of 80 has room for an indent."""
INDENT = " " * 6
SPANS = 6
"""Stretches of a piece, with loss or without, that are shown."""
PIECES = 10
"""Pieces of a row that are shown, and the last one."""
ELLIPSIS = " ... "

LEGEND = {
    "===": "state and targets start afresh: nothing crosses",
    "---": "the next document: the model sees across",
}


class Names(NamedTuple):
    """What rows are made of, for the reader."""

    sources: Sequence[str]
    decode: Callable[[list[int]], str]
    """Token ids to text, special tokens included."""
    bos: int | None
    """Token that documents start with; None: none is put there."""
    eos: int
    """Token that documents end with."""


def draw_rows(rows: Sequence[TracedRow], names: Names) -> Iterator[str]:
    """Draws rows, a block of lines each."""
    marks = {_mark(piece) for row in rows for piece in row.pieces}
    yield from (f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in marks)
    for row in rows:
        targets = f"{int(row.targets.sum()):,} targets"
        yield f"lane {row.lane}: {len(row.tokens):,} tokens, {targets}"
        left_out = range(PIECES, len(row.pieces) - 1)
        for number, piece in enumerate(row.pieces):
            if number == left_out.start and left_out:
                yield f"  and {len(left_out):,} more pieces, then the last one"
            if number not in left_out:
                yield from _draw_piece(piece, names)


def _draw_piece(piece: Piece, names: Names) -> Iterator[str]:
    yield _head(piece, names)
    if piece.document is not None:
        yield from _text(piece, names)


def _mark(piece: Piece) -> str:
    return "===" if piece.is_segment else "---"


def _head(piece: Piece, names: Names) -> str:
    tokens = "1 token" if len(piece.tokens) == 1 else f"{len(piece.tokens):,} tokens"
    at = f"  {_mark(piece)} at {piece.start:,}: {tokens}"
    if piece.document is None:
        return f"{at} of padding, no targets"
    if len(piece.tokens) == piece.length:
        which = "a whole document"
    else:
        which = f"tokens {piece.offset:,}-{piece.end - 1:,} of {piece.length:,}"
        which += "; begun before" if piece.offset else ""
        which += "; goes on" if piece.end < piece.length else ""
    source = f" of {names.sources[piece.source]}" if len(names.sources) > 1 else ""
    return f"{at}{source}, {which}"


def _text(piece: Piece, names: Names) -> Iterator[str]:
    """The text; in stretches where the loss is for some of it."""
    targets = piece.targets.copy()
    if piece.is_segment:
        # that the first token is none is said by the mark
        targets[0] = targets[1] if len(targets) > 1 else True
    if targets.all():
        yield INDENT + _shorten(piece, 0, len(targets), names, WIDTH - len(INDENT))
        return
    bounds = [0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), len(targets)]
    for start, stop in itertools.islice(itertools.pairwise(bounds), SPANS):
        label = "loss    " if targets[start] else "masked  "
        text = _shorten(piece, start, stop, names, WIDTH - len(INDENT) - len(label))
        yield INDENT + label + text
    if len(bounds) - 1 > SPANS:
        yield f"{INDENT}and {len(bounds) - 1 - SPANS} more stretches"


def _shorten(piece: Piece, start: int, stop: int, names: Names, width: int) -> str:
    """The beginning and the end of a stretch, quoted and escaped, with bos and eos named."""
    tokens = piece.tokens[start:stop].tolist()
    before = after = ""
    if names.bos is not None and piece.offset + start == 0 and tokens[:1] == [names.bos]:
        before, tokens = "bos ", tokens[1:]
    if piece.offset + stop == piece.length and tokens[-1:] == [names.eos]:
        after, tokens = " eos", tokens[:-1]
    room = width - len(before) - len(after) - 2
    # a token is a character at least, short of a few parts of characters
    enough = 2 * WIDTH
    if len(tokens) <= 2 * enough:
        head = tail = _escape(names.decode(tokens))
        if len("".join(head)) <= room:
            return f'{before}"{"".join(head)}"{after}'
    else:
        head = _escape(names.decode(tokens[:enough]))
        tail = _escape(names.decode(tokens[-enough:]))
    room -= len(ELLIPSIS) + 2
    beginning = _fit(head, room - room // 3)
    end = _fit(tail[::-1], room // 3)[::-1]
    return f'{before}"{"".join(beginning)}"{ELLIPSIS}"{"".join(end)}"{after}'


def _escape(text: str) -> list[str]:
    """The characters; quotes, newlines, tabs and what cannot be printed as escapes."""
    return [f"\\{c}" if c in '"\\' else c if c.isprintable() else repr(c)[1:-1] for c in text]


def _fit(characters: Sequence[str], room: int) -> Sequence[str]:
    """As many of the first ones as there is room for."""
    ends = itertools.accumulate(len(c) for c in characters)
    return characters[: sum(end <= room for end in ends)]
