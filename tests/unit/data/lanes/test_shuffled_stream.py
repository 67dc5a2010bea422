"""Laws of a stream: every record once in an epoch, whatever else is read; any cursor continues it.

Record ``i`` of shard ``s`` is the text "s i"; its document is one token, ``100 s + i``.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from math import gcd
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.lanes import shuffled_stream as stream
from flame_accel.data.lanes.shuffled_stream import ShuffledStream, StreamReader
from flame_accel.data.lanes.stream_blocks import KEPT_BLOCKS, shuffled_indices
from flame_accel.data.sources.shards import FileShards
from flame_accel.data.stages import Shards

DAMAGED = Skipped("damaged", "file 3, line 7", "not UTF-8")
EMPTY = Skipped("empty")
HELD_OUT = Skipped("held out")


class Text(str):
    """A text of which can be seen whether it is still in memory."""


class FakeShards:
    """Shards of given sizes; places are multiples of 7, as offsets in a file might be."""

    name = "fake"
    fingerprint = "sizes"

    def __init__(self, sizes: Sequence[int], skipped: dict[int, Skipped] | None = None) -> None:
        self.sizes = sizes
        self.skipped = skipped or {}
        self.opened: list[tuple[int, int]] = []
        self.num_read = 0
        self.num_open = 0
        self.alive: WeakSet[Text] = WeakSet()

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, shard: int, place: int) -> Iterator[tuple[Record | Skipped, int]]:
        self.opened.append((shard, place))
        assert place % 7 == 0
        self.num_open += 1
        try:
            for i in range(place // 7, self.sizes[shard]):
                self.num_read += 1
                yield self.record(shard, i), 7 * (i + 1)
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
    return ShuffledStream(shards, encode, seed=seed, block=block)


def make_reader(
    source: ShuffledStream,
    lane: int,
    num_lanes: int,
    cursor: SourceCursor | None = None,
    *,
    max_bad: int | None = None,
    report: Callable[[Skipped], None] = lambda skipped: None,
) -> StreamReader:
    cursor = cursor or SourceCursor()
    return source.open_reader(lane, num_lanes, cursor, SkipPolicy(max_bad), report)


def make_readers(source: ShuffledStream, num_lanes: int, **changes: Any) -> list[StreamReader]:
    return [make_reader(source, lane, num_lanes, **changes) for lane in range(num_lanes)]


def take(reader: StreamReader) -> int:
    document = int(reader.peek().tokens[0])
    reader.advance()
    return document


def read_epoch(reader: StreamReader, epoch: int = 0) -> list[int]:
    """Documents up to the end of an epoch."""
    documents = []
    while int(reader.peek().tokens[0]) >= 0 and reader.cursor.place[0] <= epoch:
        documents.append(take(reader))
    return documents


def all_documents(sizes: Sequence[int]) -> list[int]:
    return [100 * shard + i for shard, size in enumerate(sizes) for i in range(size)]


def saved(cursor: SourceCursor) -> SourceCursor:
    """The cursor as a checkpoint gives it back."""
    place, *counters = json.loads(json.dumps(cursor))
    return SourceCursor(tuple(place), *counters)


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    num_lanes = draw(st.integers(1, 8))
    num_shards = draw(st.integers(1, 6))
    # every group has a record for each of its lanes
    least = -(-num_lanes // num_shards)
    sizes = draw(st.lists(st.integers(least, 15), min_size=num_shards, max_size=num_shards))
    return {"sizes": sizes, "num_lanes": num_lanes, "block": draw(st.integers(1, 40))}


@given(streams())
@settings(max_examples=120, deadline=None)
def test_the_lanes_read_every_record_once_in_each_epoch(case: dict) -> None:
    source = make_source(FakeShards(case["sizes"]), block=case["block"])
    readers = make_readers(source, case["num_lanes"])
    for epoch in range(3):
        documents = chain.from_iterable(read_epoch(reader, epoch) for reader in readers)
        assert sorted(documents) == all_documents(case["sizes"])


@given(streams(), st.integers(0, 7), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=120, deadline=None)
def test_any_cursor_continues_in_a_new_source(case: dict, lane: int, first: int, more: int) -> None:
    lane %= case["num_lanes"]
    whole = make_reader(
        make_source(FakeShards(case["sizes"]), block=case["block"]), lane, case["num_lanes"]
    )
    expected = [take(whole) for _ in range(first + more + 20)]
    cursor = SourceCursor()
    documents = []
    # stopped twice, before and after `peek` has moved the cursor
    for count, looks in ((first, False), (more, True), (20, False)):
        source = make_source(FakeShards(case["sizes"]), block=case["block"])
        reader = make_reader(source, lane, case["num_lanes"], cursor)
        documents += [take(reader) for _ in range(count)]
        if looks:
            reader.peek()
        cursor = saved(reader.cursor)
    assert documents == expected
    assert cursor == whole.cursor


@given(streams(), st.data())
@settings(max_examples=100, deadline=None)
def test_what_a_lane_reads_does_not_depend_on_the_others(case: dict, data: st.DataObject) -> None:
    num_lanes = case["num_lanes"]
    lanes = data.draw(st.lists(st.integers(0, num_lanes - 1), min_size=1, max_size=5, unique=True))
    # runs of one lane, so that some are epochs ahead of others
    turns = data.draw(st.lists(st.tuples(st.sampled_from(lanes), st.integers(1, 60)), max_size=12))
    source = make_source(FakeShards(case["sizes"]), block=case["block"])
    readers = {lane: make_reader(source, lane, num_lanes) for lane in lanes}
    documents: dict[int, list[int]] = {lane: [] for lane in lanes}
    for lane, count in turns:
        documents[lane] += [take(readers[lane]) for _ in range(count)]
    for lane in lanes:
        alone = make_reader(
            make_source(FakeShards(case["sizes"]), block=case["block"]), lane, num_lanes
        )
        assert documents[lane] == [take(alone) for _ in documents[lane]]
        assert readers[lane].cursor == alone.cursor


@given(streams())
@settings(max_examples=100, deadline=None)
def test_a_block_is_consecutive_records_dealt_equally(case: dict) -> None:
    """Block 1 gives the order of a group's stream; that of any other block is cut into blocks."""
    sizes, num_lanes = case["sizes"], case["num_lanes"]
    num_groups = gcd(len(sizes), num_lanes)
    width = num_lanes // num_groups
    size = width * -(-case["block"] // num_lanes)
    plain = [
        read_epoch(reader)
        for reader in make_readers(make_source(FakeShards(sizes), block=1), num_lanes)
    ]
    readers = make_readers(make_source(FakeShards(sizes), block=case["block"]), num_lanes)
    blocks = [by_block(reader) for reader in readers]
    for group in range(num_groups):
        lanes = range(group * width, group * width + width)
        stream = [
            documents[place]
            for place in range(max(map(len, plain)))
            for documents in plain[lanes.start : lanes.stop]
            if place < len(documents)
        ]
        # files one after the other, each from its start
        assert len({d // 100 for d in stream}) == len(sizes) // num_groups
        assert all(b == a + 1 or b % 100 == 0 for a, b in pairwise(stream))
        for number in range(-(-len(stream) // size)):
            dealt = [blocks[lane].get(number, []) for lane in lanes]
            expected = stream[number * size : (number + 1) * size]
            assert sorted(chain.from_iterable(dealt)) == sorted(expected)
            counts = list(map(len, dealt))
            assert counts == [len(range(j, len(expected), width)) for j in range(width)]


def by_block(reader: StreamReader) -> dict[int, list[int]]:
    """The documents of an epoch by the number of their block."""
    blocks: dict[int, list[int]] = {}
    while int(reader.peek().tokens[0]) >= 0 and reader.cursor.place[0] == 0:
        blocks.setdefault(reader.cursor.place[3], []).append(take(reader))
    return blocks


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = set()
    for seed in range(3):
        reader = make_reader(make_source(FakeShards([20, 20]), seed=seed), 0, 1)
        orders |= {tuple(read_epoch(reader, epoch)) for epoch in range(4)}
    assert len(orders) == 12


def test_blocks_groups_and_epochs_are_shuffled_apart() -> None:
    source = make_source(FakeShards([32, 32]), block=32)
    places = []
    for reader in make_readers(source, 2):
        for epoch in range(2):
            documents = [d % 100 % 16 for d in read_epoch(reader, epoch)]
            places += [tuple(documents[:16]), tuple(documents[16:])]
    assert len(set(places)) == len(places) == 8


@pytest.mark.parametrize("length", [2, 3, 20])
def test_a_record_is_as_likely_anywhere_in_its_block(length: int) -> None:
    draws = 200 * length
    counts = np.bincount(
        [shuffled_indices(length, str(i))[0] for i in range(draws)], minlength=length
    )
    # chi square has mean n - 1 and standard deviation sqrt(2 (n - 1))
    assert ((counts - 200) ** 2 / 200).sum() < length - 1 + 5 * (2 * (length - 1)) ** 0.5


def test_lanes_that_go_together_read_each_shard_once() -> None:
    shards = FakeShards([30, 25, 33])
    readers = make_readers(make_source(shards), 4)
    for _ in range(2 * 88 // 4):
        for reader in readers:
            take(reader)
    assert sorted(shards.opened) == sorted([(0, 0), (1, 0), (2, 0)] * 2)
    assert shards.num_read == 2 * 88


def test_no_group_reads_the_shards_of_another() -> None:
    opened = []
    for lanes in (range(0, 2), range(2, 4)):
        shards = FakeShards([10, 11, 12, 13, 14, 15])
        source = make_source(shards)
        for lane in lanes:
            read_epoch(make_reader(source, lane, 4))
        # the lanes' peek at the next epoch may have opened one of its shards
        opened.append({shard for shard, _ in shards.opened[:3]})
    assert len(opened[0]) == len(opened[1]) == 3
    assert opened[0] | opened[1] == set(range(6))


def test_re_entry_reads_one_block() -> None:
    sizes, num_lanes = [40, 50, 60], 2
    reader = make_reader(make_source(FakeShards(sizes), block=16), 1, num_lanes)
    for turn in range(160):
        if turn % 2:
            reader.peek()
        shards = FakeShards(sizes)
        again = make_reader(make_source(shards, block=16), 1, num_lanes, saved(reader.cursor))
        assert take(again) == take(reader)
        assert again.cursor == reader.cursor
        # where the cursor stands at the end of an epoch, it has to see that there is no more
        assert shards.num_read <= 16
        # on from the block's start, and at most over the end of one shard
        assert len(shards.opened) <= 2


def test_a_lane_far_behind_costs_no_memory_and_reads_on_without_seeking() -> None:
    shards = FakeShards([5000])
    ahead, *others = make_readers(make_source(shards, block=40), 8)
    for reader in others:
        reader.peek()
    del reader
    for _ in range(600):
        take(ahead)
    assert len(shards.alive) <= (KEPT_BLOCKS + 1) * 40
    for _ in range(200):
        for other in others:
            take(other)
    # once for all when they fell behind, and they stay together
    assert len(shards.opened) == 2
    assert len(shards.alive) <= (KEPT_BLOCKS + 1) * 40
    del ahead, others, other
    assert not shards.alive


def test_a_lane_that_catches_up_shares_the_reading_again() -> None:
    shards = FakeShards([5000])
    first, second = make_readers(make_source(shards, block=10), 2)
    for _ in range(100):
        take(first)
    for _ in range(100):
        take(second)
    before = shards.num_read
    for _ in range(1000):
        take(first)
        take(second)
    assert shards.num_read <= before + 2000
    assert shards.num_open == 1


def test_readers_that_are_gone_leave_no_open_file() -> None:
    shards = FakeShards([5000])
    first, second = make_readers(make_source(shards, block=10), 2)
    for _ in range(100):
        take(first)
    for _ in range(50):
        take(second)
    assert shards.num_open == 2
    del second
    for _ in range(20):
        take(first)
    assert shards.num_open == 1
    del first
    assert shards.num_open == 0


@given(streams(), st.data())
@settings(max_examples=40, deadline=None)
def test_records_without_a_document_keep_their_places(case: dict, data: st.DataObject) -> None:
    sizes, num_lanes = case["sizes"], case["num_lanes"]
    kinds = st.sampled_from([DAMAGED, EMPTY, HELD_OUT])
    skipped = data.draw(st.dictionaries(st.sampled_from(all_documents(sizes)), kinds))
    max_bad = 1000 if DAMAGED in skipped.values() else None
    for lane in range(num_lanes):
        plain = make_reader(make_source(FakeShards(sizes), block=case["block"]), lane, num_lanes)
        reports: list[Skipped] = []
        reader = make_reader(
            make_source(FakeShards(sizes, skipped), block=case["block"]),
            lane,
            num_lanes,
            max_bad=max_bad,
            report=reports.append,
        )
        read = [take(plain) for _ in range(2 * sum(sizes))]
        expected = [document for document in read if document not in skipped]
        assert [take(reader) for _ in expected[:-1]] == expected[:-1]
        if expected:
            # it has passed over all that stands before the last one
            assert reader.peek().tokens[0] == expected[-1]
            before = read[: len(read) - read[::-1].index(expected[-1]) - 1]
            passed = [skipped[document] for document in before if document in skipped]
            bad = [one for one in passed if SkipPolicy(max_bad).counts_as_bad(one)]
            counters = (len(expected) - 1, len(passed), len(bad), len(expected) - 1)
            assert reader.cursor[1:] == counters
            assert reports == bad


def test_a_refused_record_says_where_it_is_and_what_to_do() -> None:
    source = make_source(FakeShards([3], {1: DAMAGED}), block=1)
    reader = make_reader(source, 0, 1)
    assert take(reader) == 0
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)file 3, line 7: not UTF-8.*max_bad_records"):
            reader.peek()
    assert reader.cursor[1:] == (1, 0, 0, 1)
    strict = make_reader(make_source(FakeShards([3], {1: EMPTY}), block=1), 0, 1, max_bad=0)
    take(strict)
    with pytest.raises(UserError, match="fake: the document is empty"):
        strict.peek()


def test_fewer_documents_than_lanes_gives_both_numbers() -> None:
    readers = make_readers(make_source(FakeShards([3])), 4)
    assert sorted(take(reader) for reader in readers[:3]) == [0, 1, 2]
    with pytest.raises(UserError, match=r"fake: 3 documents in 1 shards .* the 4 rows"):
        readers[3].peek()


def test_a_group_short_of_documents_gives_its_own_numbers() -> None:
    # one shard for each two lanes
    with pytest.raises(UserError, match=r"1 documents in 1 shards .* the 2 rows"):
        for reader in make_readers(make_source(FakeShards([1, 1])), 4):
            reader.peek()


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(UserError, match="0 documents in 2 shards"):
        make_reader(make_source(FakeShards([0, 0])), 0, 1).peek()


def test_a_stream_without_text_is_refused() -> None:
    shards = FakeShards([9], dict.fromkeys(range(9), EMPTY))
    with pytest.raises(UserError, match=r"no text in any of the documents, 9 in"):
        make_reader(make_source(shards), 1, 2).peek()


def test_patience_ends_with_many_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "EMPTY_DOCUMENTS", 10)
    shards = FakeShards([20], dict.fromkeys(range(1, 20), EMPTY))
    reader = make_reader(make_source(shards, block=1), 0, 1)
    # nineteen in a row, and the end of an epoch, are no whole pass
    assert [take(reader) for _ in range(5)] == [0] * 5
    shards = FakeShards([20], dict.fromkeys(range(20), EMPTY))
    with pytest.raises(UserError, match="no text"):
        make_reader(make_source(shards), 0, 1).peek()
    assert shards.num_read == 40


def test_a_lane_may_find_nothing_in_one_epoch() -> None:
    """With a document for each lane, all but one of them held out, the order brings it in time."""
    shards = FakeShards([4], dict.fromkeys(range(3), HELD_OUT))
    for reader in make_readers(make_source(shards), 4):
        assert [take(reader) for _ in range(5)] == [3] * 5


def test_empty_shards_are_passed_over() -> None:
    sizes = [0, 5, 0, 0, 7, 0]
    readers = make_readers(make_source(FakeShards(sizes), block=3), 1)
    assert sorted(read_epoch(readers[0])) == all_documents(sizes)


def test_files_are_re_entered_anywhere(tmp_path: Path) -> None:
    lines = [[json.dumps({"text": f"{shard} {i}"}) for i in range(20)] for shard in range(3)]
    lines[0][7] = lines[1][0] = '{"text": null}'
    lines[2][19] = '{"text": "half of a'
    (tmp_path / "0.jsonl").write_text("\n".join(lines[0]))
    (tmp_path / "1.jsonl").write_text("\n".join(lines[1]) + "\n")
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[2]).encode()))
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    documents = set(all_documents([20, 20, 20])) - {7, 100, 219}

    def open_source() -> ShuffledStream:
        return make_source(FileShards("files", files, text_column=None, max_bytes=100), block=9)

    readers = make_readers(open_source(), 2, max_bad=100)
    for epoch in range(2):
        assert {*read_epoch(readers[0], epoch), *read_epoch(readers[1], epoch)} == documents
    reader = make_reader(open_source(), 1, 2, max_bad=100)
    for _ in range(60):
        again = make_reader(open_source(), 1, 2, saved(reader.cursor), max_bad=100)
        assert take(again) == take(reader)
        assert again.cursor == reader.cursor
    assert reader.cursor.bad == reader.cursor.skipped > 0


def test_epoch_counts_the_shards_that_are_done() -> None:
    reader = make_reader(make_source(FakeShards([4, 4]), block=1), 0, 1)
    assert reader.epoch == 0
    epochs = []
    for _ in range(10):
        reader.peek()
        epochs.append(reader.epoch)
        reader.advance()
    assert epochs == sorted(epochs)
    # a block may start at the end of a shard
    assert epochs[0] == 0
    assert epochs[5] == 0.5
    assert epochs[8] == 1
