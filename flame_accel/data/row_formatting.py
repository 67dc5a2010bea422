"""Formats packed rows as text: each piece of a document with its position, text and targets.

`row_tracing` finds out where tokens come from.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flame_accel.data.row_tracing import Piece, TracedRow

WIDTH = 78
"""Columns of a line; a screen of 80 then has room for an indent."""
INDENT = " " * 6
MAX_SPANS = 6
"""Spans with or without loss that are shown of a piece."""
MAX_PIECES = 10
"""Pieces of a row that are shown, in addition to the last one."""
ELLIPSIS = " ... "
START_MARKS = {True: "===", False: "---"}
"""Mark of a piece by whether it starts a segment."""
SEGMENT_MEANING = "state is reset and targets stop here: nothing crosses"
ROW_MEANING = "a row begins: state is reset, and the first token is no target"
NEXT_MEANING = "the next document: the model sees across"


class RowVocabulary(NamedTuple):
    """What is needed to turn the tokens of rows into text."""

    source_names: Sequence[str]
    decode: Callable[[list[int]], str]
    """Token ids to text, special tokens included."""
    bos: int | None
    """Id of the token that documents start with; None: they have none."""
    eos: int
    """Id of the token that documents end with."""


def format_rows(rows: Sequence[TracedRow], vocabulary: RowVocabulary) -> Iterator[str]:
    """Lines for rows, a block of lines each."""
    pieces = [piece for row in rows for piece in row.pieces]
    if any(piece.starts_segment for piece in pieces):
        within_rows = any(piece.starts_segment and piece.start for piece in pieces)
        yield f"{START_MARKS[True]} {SEGMENT_MEANING if within_rows else ROW_MEANING}"
    if not all(piece.starts_segment for piece in pieces):
        yield f"{START_MARKS[False]} {NEXT_MEANING}"
    for row in rows:
        targets = f"{int(row.targets.sum()):,} targets"
        yield f"lane {row.lane}: {len(row.tokens):,} tokens, {targets}"
        left_out = range(MAX_PIECES, len(row.pieces) - 1)
        for number, piece in enumerate(row.pieces):
            if number == left_out.start and left_out:
                yield f"  and {len(left_out):,} more pieces, then the last one"
            if number not in left_out:
                yield _format_piece_heading(piece, vocabulary)
                if piece.document is not None:
                    yield from _format_text_by_loss_span(piece, vocabulary)


def _format_piece_heading(piece: Piece, vocabulary: RowVocabulary) -> str:
    """Position, length, source, and which part of its document the piece is."""
    tokens = "1 token" if len(piece.tokens) == 1 else f"{len(piece.tokens):,} tokens"
    at = f"  {START_MARKS[piece.starts_segment]} at {piece.start:,}: {tokens}"
    if piece.document is None:
        return f"{at} of padding, no targets"
    if len(piece.tokens) == piece.document_length:
        which = "a whole document"
    else:
        which = (
            f"tokens {piece.offset:,}-{piece.end_in_document - 1:,} of {piece.document_length:,}"
        )
        which += "; started before" if piece.offset else ""
        which += "; continues" if piece.end_in_document < piece.document_length else ""
    names = vocabulary.source_names
    source = f" of {names[piece.source]}" if len(names) > 1 else ""
    return f"{at}{source}, {which}"


def _format_text_by_loss_span(piece: Piece, vocabulary: RowVocabulary) -> Iterator[str]:
    """The text of a piece; a line per span if the loss is computed for some of it only."""
    targets = piece.targets.copy()
    if piece.starts_segment:
        # the mark already says that the first token is no target
        targets[0] = targets[1] if len(targets) > 1 else True
    if targets.all():
        yield INDENT + _quote_tokens(piece, 0, len(targets), vocabulary, WIDTH - len(INDENT))
        return
    bounds = [0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), len(targets)]
    for start, stop in itertools.islice(itertools.pairwise(bounds), MAX_SPANS):
        label = "loss    " if targets[start] else "masked  "
        width = WIDTH - len(INDENT) - len(label)
        yield INDENT + label + _quote_tokens(piece, start, stop, vocabulary, width)
    if len(bounds) - 1 > MAX_SPANS:
        yield f"{INDENT}and {len(bounds) - 1 - MAX_SPANS} more spans"


def _quote_tokens(
    piece: Piece, start: int, stop: int, vocabulary: RowVocabulary, width: int
) -> str:
    """Text of tokens [start, stop), quoted, escaped and shortened; bos and eos are named."""
    tokens = piece.tokens[start:stop].tolist()
    before = after = ""
    if vocabulary.bos is not None and piece.offset + start == 0 and tokens[:1] == [vocabulary.bos]:
        before, tokens = "bos ", tokens[1:]
    if piece.offset + stop == piece.document_length and tokens[-1:] == [vocabulary.eos]:
        after, tokens = " eos", tokens[:-1]
    room = width - len(before) - len(after) - 2
    # a token has at least one character, except for parts of characters
    enough = 2 * WIDTH
    if len(tokens) <= 2 * enough:
        head = tail = _escape_characters(vocabulary.decode(tokens))
        if len("".join(head)) <= room:
            return f'{before}"{"".join(head)}"{after}'
    else:
        head = _escape_characters(vocabulary.decode(tokens[:enough]))
        tail = _escape_characters(vocabulary.decode(tokens[-enough:]))
    room -= len(ELLIPSIS) + 2
    beginning = _longest_prefix_within(head, room - room // 3)
    end = _longest_prefix_within(tail[::-1], room // 3)[::-1]
    return f'{before}"{"".join(beginning)}"{ELLIPSIS}"{"".join(end)}"{after}'


def _escape_characters(text: str) -> list[str]:
    """The characters; quotes, newlines, tabs and what cannot be printed are escaped."""
    return [f"\\{c}" if c in '"\\' else c if c.isprintable() else repr(c)[1:-1] for c in text]


def _longest_prefix_within(characters: Sequence[str], width: int) -> Sequence[str]:
    """The longest start of `characters` that takes at most `width` columns."""
    ends = itertools.accumulate(len(c) for c in characters)
    return characters[: sum(end <= width for end in ends)]
