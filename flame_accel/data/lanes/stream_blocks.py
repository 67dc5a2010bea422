"""Blocks of a stream: which shards a group of lanes reads, in blocks that are shuffled and dealt.

The ``L`` lanes and ``S`` shards fall into ``G = gcd(S, L)`` groups of consecutive lanes. In each
epoch the shards are permuted; group ``g`` reads those at places g, g + G, ... of that order one
after the other, cut into blocks whose shuffled records are dealt to its lanes in turn. So a group
needs no other group's shards, and any block is entered by the place where it starts. All that is
held here is shared by the lanes of a process. Documents, counters and cursors are no matter here.
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
"""Blocks whose records a group keeps for lanes of this process that have not come so far: a lane
that lags further behind the foremost reads the blocks once more, on its own."""


class BlockStart(NamedTuple):
    """Where a block starts; integers in JSON."""

    epoch: int = 0
    """Passes over the group's shards that are complete."""
    shard: int = 0
    """Which of the group's shards in this epoch, from 0."""
    place: int = 0
    """Place in that shard, as `Shards.read` takes it."""
    number: int = 0
    """Blocks of this epoch before it."""


class Share(NamedTuple):
    """What one lane gets of a block."""

    start: BlockStart
    """Where the block starts."""
    records: list[Record | Skipped]
    """The lane's records in the order in which it reads them; none in a very short block."""
    end: BlockStart
    """Where the next block starts."""
    num_records: int
    """Records of the group in this epoch up to the end of the block: all, if it is the last."""


class Group:
    """The stream of one group of lanes in this process.

    At most `KEPT_BLOCKS` blocks of records are kept, and one more while it is dealt, however far
    the lanes are apart.

    Args:
        shards: all shards of the source.
        group: which group, 0 <= group < gcd(len(shards), num_lanes).
        num_lanes: lanes of all groups.
        seed: of the order of the shards and of the records in a block.
        block: records in the blocks of all groups together, rounded up until each lane gets
            equally many; 1: as few as that, in the order of the stream.
    """

    def __init__(self, shards: Shards, *, group: int, num_lanes: int, seed: int, block: int):
        self._shards = shards
        self._num_groups = gcd(len(shards), num_lanes)
        self._group = group
        self._order = EpochOrder(num_documents=len(shards), seed=seed)
        self._seed = seed
        self._shuffled = block > 1
        self.num_shards = len(shards) // self._num_groups
        self.num_lanes = num_lanes // self._num_groups
        # equally many for each lane, rounded up
        each = -(-block // num_lanes)
        self._block_size = each * self.num_lanes
        self._lanes: WeakSet[LaneBlocks] = WeakSet()
        # open streams by the block that they come to next, as far as a lane needs it next
        self._streams: dict[BlockStart, Iterator[tuple[Record | Skipped, int, int]]] = {}

    def join(self, lane: "LaneBlocks") -> None:
        """From now on the lane gets its share of what others read, too."""
        self._lanes.add(lane)

    def read(self, start: BlockStart) -> None:
        """Read a block and deal it to the lanes that need it next and do not lag too far behind."""
        stream = self._streams.pop(start, None) or self._open(start)
        block = list(islice(stream, self._block_size))
        num_records = start.number * self._block_size + len(block)
        if len(block) < self._block_size:
            end = BlockStart(start.epoch + 1)
        else:
            end = BlockStart(start.epoch, *block[-1][1:], start.number + 1)
            self._streams[end] = stream
        order = self._block_order(start, len(block))
        most = max(1, KEPT_BLOCKS * self.num_lanes // len(self._lanes))
        for lane in self._lanes:
            if lane.next_start == start and lane.num_shares < most:
                own = [block[index][0] for index in order[lane.position :: self.num_lanes]]
                lane.append(Share(start, own, end, num_records))
        needed = {lane.next_start for lane in self._lanes}
        self._streams = {at: stream for at, stream in self._streams.items() if at in needed}

    def _open(self, start: BlockStart) -> Iterator[tuple[Record | Skipped, int, int]]:
        first = self._group + start.shard * self._num_groups
        positions = range(first, len(self._shards), self._num_groups)
        order = self._order.documents(start.epoch, positions)
        return read_on(self._shards, order, start.shard, start.place)

    def _block_order(self, start: BlockStart, length: int) -> list[int]:
        if not self._shuffled:
            return list(range(length))
        return shuffled_indices(length, f"{self._seed}:{start.epoch}:{self._group}:{start.number}")


class LaneBlocks:
    """The shares of one lane, block after block.

    Args:
        group: the lane's group; it must be of this process.
        position: which lane of the group, from 0.
        start: the first block.
    """

    def __init__(self, group: Group, position: int, start: BlockStart) -> None:
        self.position = position
        self.next_start = start
        """The first block that has not been dealt yet."""
        self._group = group
        self._shares: deque[Share] = deque()
        group.join(self)

    @property
    def num_shares(self) -> int:
        """Shares that were dealt and not dropped."""
        return len(self._shares)

    def append(self, share: Share) -> None:
        """Take the share of the next block."""
        self._shares.append(share)
        self.next_start = share.end

    def first(self) -> Share:
        """The share of the block where the lane is."""
        if not self._shares:
            self._group.read(self.next_start)
        return self._shares[0]

    def drop_first(self) -> None:
        """Go on to the next block."""
        self._shares.popleft()


def read_on(
    shards: Shards, order: list[int], number: int, place: int
) -> Iterator[tuple[Record | Skipped, int, int]]:
    """Records of some shards, each with the number of its shard and the place behind it.

    Args:
        shards: all shards.
        order: which of them, one after the other.
        number: number of the first, the others are counted from there.
        place: where to start in the first.
    """
    for count, shard in enumerate(order):
        for record, behind in shards.read(shard, 0 if count else place):
            yield record, number + count, behind


def shuffled_indices(length: int, key: str) -> list[int]:
    """The numbers below `length` in the order of random keys, the same on any machine for ever.

    `EpochOrder` would do, but is slow where it has few documents, and numpy's own permutations may
    change with its version.
    """
    digest = hashlib.shake_128(f"block:{key}".encode()).digest(8 * length)
    return np.argsort(np.frombuffer(digest, dtype="<u8"), kind="stable").tolist()
