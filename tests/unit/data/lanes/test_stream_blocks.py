"""Laws of blocks: consecutive records, split equally, read once for all lanes of a process."""

from itertools import chain, pairwise
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings

from flame_accel.data.lanes.shuffled_stream import StreamReader
from flame_accel.data.lanes.stream_blocks import KEPT_BLOCKS, shuffled_indices
from tests.helpers.fake_shards import (
    FakeShards,
    make_reader,
    make_readers,
    make_source,
    read_epoch,
    streams,
    take,
)


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
            assigned = [blocks[lane].get(number, []) for lane in lanes]
            expected = stream[number * size : (number + 1) * size]
            assert sorted(chain.from_iterable(assigned)) == sorted(expected)
            counts = list(map(len, assigned))
            assert counts == [len(range(j, len(expected), width)) for j in range(width)]


def by_block(reader: StreamReader) -> dict[int, list[int]]:
    """The documents of an epoch by the number of their block."""
    blocks: dict[int, list[int]] = {}
    while int(reader.peek().tokens[0]) >= 0 and reader.cursor.position[0] == 0:
        blocks.setdefault(reader.cursor.position[3], []).append(take(reader))
    return blocks


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
