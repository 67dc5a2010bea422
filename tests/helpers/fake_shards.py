"""Shards of numbered records, and readers of streams over them.

Record `i` of shard `s` is the text "s i"; its document is one token, `100 s + i`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
from hypothesis import strategies as st

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, PositionedRecord, Record, Skipped
from flame_accel.data.lanes.shuffled_stream import ShuffledStream, StreamReader
from flame_accel.data.stages import Shards


class Text(str):
    """A text of which can be seen whether it is still in memory."""


class FakeShards:
    """Shards of given sizes; positions are multiples of 7, as offsets in a file might be."""

    name = "fake"
    quick_content_fingerprint = "sizes"

    def __init__(self, sizes: Sequence[int], skipped: dict[int, Skipped] | None = None) -> None:
        self.sizes = sizes
        self.skipped = skipped or {}
        self.opened: list[tuple[int, int]] = []
        self.num_read = 0
        self.num_open = 0
        self.alive: WeakSet[Text] = WeakSet()

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, shard: int, position: int) -> Iterator[PositionedRecord]:
        self.opened.append((shard, position))
        assert position % 7 == 0
        self.num_open += 1
        try:
            for i in range(position // 7, self.sizes[shard]):
                self.num_read += 1
                yield PositionedRecord(self.record(shard, i), 7 * (i + 1))
        finally:
            self.num_open -= 1

    def record(self, shard: int, i: int) -> Record | Skipped:
        if 100 * shard + i in self.skipped:
            return self.skipped[100 * shard + i]
        text = Text(f"{shard} {i}")
        self.alive.add(text)
        return text


def encode(record: Record | Skipped) -> Document | Skipped:
    if isinstance(record, Skipped):
        return record
    assert isinstance(record, str)
    shard, i = map(int, record.split())
    return Document(np.array([100 * shard + i]))


def make_source(shards: Shards, *, block: int = 8, seed: int = 3) -> ShuffledStream:
    return ShuffledStream(shards, encode, seed=seed, block_size=block)


def make_reader(
    source: ShuffledStream,
    lane: int,
    num_lanes: int,
    cursor: SourceCursor | None = None,
    *,
    max_bad: int | None = None,
    on_bad_record: Callable[[Skipped], None] = lambda skipped: None,
) -> StreamReader:
    cursor = cursor or SourceCursor()
    return source.open_reader(lane, num_lanes, cursor, SkipPolicy(max_bad), on_bad_record)


def make_readers(source: ShuffledStream, num_lanes: int, **changes: Any) -> list[StreamReader]:
    return [make_reader(source, lane, num_lanes, **changes) for lane in range(num_lanes)]


def take(reader: StreamReader) -> int:
    document = int(reader.peek().tokens[0])
    reader.consume_peeked()
    return document


def read_epoch(reader: StreamReader, epoch: int = 0) -> list[int]:
    """Documents up to the end of an epoch."""
    documents = []
    while int(reader.peek().tokens[0]) >= 0 and reader.cursor.position[0] <= epoch:
        documents.append(take(reader))
    return documents


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    num_lanes = draw(st.integers(1, 8))
    num_shards = draw(st.integers(1, 6))
    # every group has a record for each of its lanes
    least = -(-num_lanes // num_shards)
    sizes = draw(st.lists(st.integers(least, 15), min_size=num_shards, max_size=num_shards))
    return {"sizes": sizes, "num_lanes": num_lanes, "block": draw(st.integers(1, 40))}
