"""Blocks of a stream: which shards a group of lanes reads, in blocks that are shuffled and split.

The `L` lanes and `S` shards fall into `G = gcd(S, L)` groups of consecutive lanes. In each
epoch the shards are permuted; group `g` reads those at positions g, g + G, ... of that order one
after the other, cut into blocks whose shuffled records are assigned to its lanes in turn. So a
group needs no other group's shards, and reading can start at any block, given its position.
Everything here is shared by the lanes of a process.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from math import gcd
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from flame_accel.data.documents import Record, Skipped
from flame_accel.data.lanes.epoch_order import EpochOrder
from flame_accel.data.stages import Shards

KEPT_BLOCKS = 4
"""Number of blocks whose records a group keeps for the slower lanes of this process: a lane that is
further behind the fastest one reads the blocks again, by itself."""


class BlockStart(NamedTuple):
    """Where a block starts; integers in JSON."""

    epoch: int = 0
    """Passes over the group's shards that are complete."""
    shard: int = 0
    """Which of the group's shards in this epoch, from 0."""
    position: int = 0
    """Place in that shard, as `Shards.read` takes it."""
    number: int = 0
    """Blocks of this epoch before it."""


class LaneBlock(NamedTuple):
    """The records of a block that belong to one lane."""

    start: BlockStart
    """Where the block starts."""
    records: list[Record | Skipped]
    """The lane's records in the order in which it reads them; none in a very short block."""
    end: BlockStart
    """Where the next block starts."""
    num_records: int
    """Records of the group in this epoch up to the end of the block: all, if it is the last."""


class StreamRecord(NamedTuple):
    """A record of a group's stream, and where to continue after it in the same epoch."""

    record: Record | Skipped
    shard_number: int
    """Which of the group's shards in this epoch, from 0."""
    next_position: int
    """Position in that shard behind the record."""


class LaneGroup:
    """The stream of one group of lanes in this process.

    At most `KEPT_BLOCKS` blocks of records are kept, and one more while it is being split, however
    far the lanes are apart.

    Args:
        shards: all shards of the source.
        group: which group, 0 <= group < gcd(len(shards), num_lanes).
        num_lanes: number of lanes of all groups.
        seed: seed of the order of the shards and of the records in a block.
        block_size: number of records in the blocks of all groups together, rounded up so that each
            lane gets equally many; 1: one record per lane, in the order of the stream.
    """

    def __init__(self, shards: Shards, *, group: int, num_lanes: int, seed: int, block_size: int):
        self._shards = shards
        self._num_groups = gcd(len(shards), num_lanes)
        self._group = group
        self._order = EpochOrder(num_documents=len(shards), seed=seed)
        self._seed = seed
        self._shuffled = block_size > 1
        self.num_shards = len(shards) // self._num_groups
        self.num_lanes = num_lanes // self._num_groups
        # equally many for each lane, rounded up
        each = -(-block_size // num_lanes)
        self._block_size = each * self.num_lanes
        self._lanes: WeakSet[LaneBlockQueue] = WeakSet()
        # open streams by the block they reach next, if a lane needs that block next
        self._streams: dict[BlockStart, Iterator[StreamRecord]] = {}

    def add_lane_queue(self, queue: "LaneBlockQueue") -> None:
        """Let a lane receive its records of the blocks that others read as well."""
        self._lanes.add(queue)

    def read_block_for_waiting_lanes(self, start: BlockStart) -> None:
        """Read a block and split it among the lanes that need it next and are not far behind."""
        stream = self._streams.pop(start, None) or self._open_new_stream_at(start)
        block = list(islice(stream, self._block_size))
        num_records = start.number * self._block_size + len(block)
        if len(block) < self._block_size:
            end = BlockStart(start.epoch + 1)
        else:
            _, shard_number, next_position = block[-1]
            end = BlockStart(start.epoch, shard_number, next_position, start.number + 1)
            self._streams[end] = stream
        order = self._record_order_in_block(start, len(block))
        most = max(1, KEPT_BLOCKS * self.num_lanes // len(self._lanes))
        for lane in self._lanes:
            if lane.next_start == start and lane.num_blocks < most:
                records = [block[index].record for index in order[lane.position :: self.num_lanes]]
                lane.append_block_and_advance_next_start(
                    LaneBlock(start, records, end, num_records)
                )
        needed = {lane.next_start for lane in self._lanes}
        self._streams = {at: stream for at, stream in self._streams.items() if at in needed}

    def _open_new_stream_at(self, start: BlockStart) -> Iterator[StreamRecord]:
        first = self._group + start.shard * self._num_groups
        positions = range(first, len(self._shards), self._num_groups)
        order = self._order.document_indices_at(start.epoch, positions)
        # a generator of this class would hold the group, which holds it
        return read_shards_in_order(self._shards, order, start.shard, start.position)

    def _record_order_in_block(self, start: BlockStart, length: int) -> list[int]:
        if not self._shuffled:
            return list(range(length))
        return shuffled_indices(length, f"{self._seed}:{start.epoch}:{self._group}:{start.number}")


class LaneBlockQueue:
    """The blocks that a lane has received and not read yet.

    Args:
        group: the lane's group, in this process.
        position_in_group: index of the lane in its group.
        start: the first block.
    """

    def __init__(self, group: LaneGroup, position_in_group: int, start: BlockStart) -> None:
        self.position = position_in_group
        self.next_start = start
        """Where the first block starts that the lane has not received yet."""
        self._group = group
        self._blocks: deque[LaneBlock] = deque()
        group.add_lane_queue(self)

    @property
    def num_blocks(self) -> int:
        """Number of blocks in the queue."""
        return len(self._blocks)

    def append_block_and_advance_next_start(self, block: LaneBlock) -> None:
        """Receive the next block."""
        self._blocks.append(block)
        self.next_start = block.end

    def read_current_block(self) -> LaneBlock:
        """The block that the lane is reading."""
        if not self._blocks:
            self._group.read_block_for_waiting_lanes(self.next_start)
        return self._blocks[0]

    def drop_current_block(self) -> None:
        """Move to the next block."""
        self._blocks.popleft()


def read_shards_in_order(
    shards: Shards, shard_indices: list[int], first_shard_number: int, start_position: int
) -> Iterator[StreamRecord]:
    """Read some shards, one after the other.

    Args:
        shards: all shards.
        shard_indices: which of them, in this order.
        first_shard_number: number of the first of them; the others are counted from there.
        start_position: where to start in the first.
    """
    for count, shard in enumerate(shard_indices):
        for record, next_position in shards.read(shard, 0 if count else start_position):
            yield StreamRecord(record, first_shard_number + count, next_position)


def shuffled_indices(length: int, key: str) -> list[int]:
    """The indices below `length` in a random order, the same on any machine and in any version.

    `EpochOrder` is slow for few documents, and numpy's own permutations may change with its
    version.
    """
    digest = hashlib.shake_128(f"block:{key}".encode()).digest(8 * length)
    return np.argsort(np.frombuffer(digest, dtype="<u8"), kind="stable").tolist()
