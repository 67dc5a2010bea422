"""Laws of a stream: every record once per epoch, whatever else is read; any cursor continues it."""

import gzip
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Skipped
from flame_accel.data.lanes import shuffled_stream as stream
from flame_accel.data.lanes.shuffled_stream import ShuffledStream
from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.record_parsing import RecordColumn
from tests.helpers.fake_shards import (
    FakeShards,
    make_reader,
    make_readers,
    make_source,
    read_epoch,
    streams,
    take,
)

DAMAGED = Skipped("damaged", "file 3, line 7", "not UTF-8")

EMPTY = Skipped("empty")

HELD_OUT = Skipped("held out")


def all_documents(sizes: Sequence[int]) -> list[int]:
    return [100 * shard + i for shard, size in enumerate(sizes) for i in range(size)]


def saved(cursor: SourceCursor) -> SourceCursor:
    """The cursor as a checkpoint gives it back."""
    position, *counters = json.loads(json.dumps(cursor))
    return SourceCursor(tuple(position), *counters)


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


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = set()
    for seed in range(3):
        reader = make_reader(make_source(FakeShards([20, 20]), seed=seed), 0, 1)
        orders |= {tuple(read_epoch(reader, epoch)) for epoch in range(4)}
    assert len(orders) == 12


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
            on_bad_record=reports.append,
        )
        read = [take(plain) for _ in range(2 * sum(sizes))]
        expected = [document for document in read if document not in skipped]
        assert [take(reader) for _ in expected[:-1]] == expected[:-1]
        if expected:
            # it has passed over all that stands before the last one
            assert reader.peek().tokens[0] == expected[-1]
            before = read[: len(read) - read[::-1].index(expected[-1]) - 1]
            passed = [skipped[document] for document in before if document in skipped]
            bad = [
                one
                for one in passed
                if SkipPolicy(max_bad).counts_damaged_always_and_empty_if_limited(one)
            ]
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


def test_empty_shards_are_skipped() -> None:
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
        return make_source(FileShards("files", files, RecordColumn(max_bytes=100)), block=9)

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
    assert reader.approximate_epochs_read == 0
    epochs = []
    for _ in range(10):
        reader.peek()
        epochs.append(reader.approximate_epochs_read)
        reader.consume_peeked()
    assert epochs == sorted(epochs)
    # a block may start at the end of a shard
    assert epochs[0] == 0
    assert epochs[5] == 0.5
    assert epochs[8] == 1
