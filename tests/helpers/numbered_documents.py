"""Documents of numbers, whose tokens say where they are from, and lanes over them.

Token ``o`` of document ``d`` of source ``s`` is ``1_000_000 s + 1000 d + o``.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.epoch_order import EpochOrder
from flame_accel.data.lanes.lane import Lane, build_lane
from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.lanes.shuffled_table import ShuffledTable

SEED = 7


class Numbers:
    """Documents of given lengths; 0: one without text; with targets: all but each third token."""

    def __init__(self, lengths: Sequence[int], *, source: int = 0, targets: bool = False) -> None:
        self.name = f"numbers {source}"
        self.sampled_records_fingerprint = str(lengths)
        self._lengths = lengths
        self._source = source
        self._targets = targets

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Document | Skipped:
        if not self._lengths[index]:
            return Skipped("empty", f"record {index}", "there is no text")
        first = 1_000_000 * self._source + 1000 * index
        # a token cache holds the smallest type, a tokenizer gives another one
        kind = np.int64 if self._source else np.uint32
        tokens = np.arange(first, first + self._lengths[index], dtype=kind)
        targets = np.array([is_target(int(token)) for token in tokens])
        # documents of one source may differ in this
        return Document(tokens, targets if self._targets and index % 2 else None)


def is_target(token: int) -> bool:
    return token % 3 != 2


def open_lane(
    sources: Sequence[Numbers],
    packing: Packing,
    *,
    shares: Sequence[float] = (1.0,),
    lane: int = 0,
    num_lanes: int = 1,
    cursor: LaneCursor | None = None,
    policy: SkipPolicy | None = None,
) -> Lane:
    cursor = cursor or LaneCursor(sources=(SourceCursor(),) * len(sources))
    readers = [
        ShuffledTable(documents, seed=SEED + i).open_reader(
            lane, num_lanes, source_cursor, policy or SkipPolicy(), lambda skipped: None
        )
        for i, (documents, source_cursor) in enumerate(zip(sources, cursor.sources, strict=True))
    ]
    return build_lane(readers, shares, packing, cursor)


def through_json(cursor: LaneCursor) -> LaneCursor:
    """What comes back from a file that holds lists of integers."""
    source, offset, row, sources = json.loads(json.dumps(cursor))
    cursors = (SourceCursor(tuple(position), *counts) for position, *counts in sources)
    return LaneCursor(source, offset, row, tuple(cursors))


def documents_of(
    documents: Numbers, lane: int = 0, num_lanes: int = 1, seed: int = SEED
) -> Iterator[Document]:
    """What a lane must read of one source: its documents in the order of its epochs."""
    order = EpochOrder(num_documents=len(documents), seed=seed)
    epoch = 0
    while True:
        for position in range(lane, len(documents), num_lanes):
            document = documents[order.document_index_at(epoch, position)]
            if isinstance(document, Document):
                yield document
        epoch += 1


def pairs_of(document: Document) -> list[tuple[int, int]]:
    """(token before, target) of all that the loss is for in a document."""
    numbers = document.tokens.tolist()
    wanted = [True] * len(numbers) if document.targets is None else document.targets.tolist()
    return [pair for pair, is_in in zip(pairwise(numbers), wanted[1:], strict=True) if is_in]


def pairs_in(row: Row) -> list[tuple[int, int]]:
    """(token before, target) as a model sees them: no target at the start of a segment."""
    numbers = row.tokens.tolist()
    wanted = [True] * len(numbers) if row.targets is None else row.targets.tolist()
    starts = set(row.starts)
    return [
        pair for i, pair in enumerate(pairwise(numbers), start=1) if wanted[i] and i not in starts
    ]


def same(row: Row, other: Row) -> bool:
    """Whether two rows are bit for bit the same."""
    if (row.targets is None) != (other.targets is None):
        return False
    return (
        row.tokens.dtype == other.tokens.dtype
        and row.tokens.tobytes() == other.tokens.tobytes()
        and (row.starts, row.padding) == (other.starts, other.padding)
        and (row.targets is None or row.targets.tobytes() == other.targets.tobytes())
    )


@st.composite
def lane_cases(draw: st.DrawFn, *, best_fit: bool | None = None) -> dict:
    """Arguments of `open_lane`: one to three sources, any lane, any packing."""
    num_sources = draw(st.integers(1, 3))
    lengths = st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any)
    sources = [
        Numbers(draw(lengths), source=source, targets=draw(st.booleans()))
        for source in range(num_sources)
    ]
    num_lanes = draw(st.integers(1, min(len(documents) for documents in sources)))
    seq_len = draw(st.integers(2, 17))
    packs_best = draw(st.booleans()) if best_fit is None else best_fit
    context = st.integers(2, seq_len)
    return {
        "sources": sources,
        "shares": [draw(st.floats(0.05, 1.0)) for _ in sources],
        "packing": Packing(
            seq_len=seq_len,
            context_len=draw(context if packs_best else st.none() | context),
            best_fit=packs_best,
            padding=-5,
        ),
        "num_lanes": num_lanes,
        "lane": draw(st.integers(0, num_lanes - 1)),
    }
