"""The order in which lanes read records that come in sequence: files, streams of the Hub.

The stream is shuffled in blocks, and can be entered at any block, see `stream_blocks`. A position
is (epoch, shard, position in it, number of the block, index of the lane's next record in the
block): to start there, that one block is read. Records keep their positions whether they give a
document or not, so that no policy changes which lane reads what.
"""

import os
from collections.abc import Callable
from math import gcd
from weakref import WeakValueDictionary

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor, SourcePosition
from flame_accel.data.documents import Document, Encode, Skipped
from flame_accel.data.lanes.counting_reader import EMPTY_DOCUMENTS, EMPTY_PASSES, CountingReader
from flame_accel.data.lanes.stream_blocks import BlockStart, LaneBlockQueue, LaneGroup
from flame_accel.data.stages import Shards


class ShuffledStream:
    """Records in sequence, whose shards and blocks are shuffled anew in each epoch.

    What a lane reads depends only on the shards, the seed, the block and the number of lanes. With
    ``S`` shards and ``L`` lanes, gcd(S, L) groups of lanes read shards of their own: best is a
    multiple of the lanes; with one shard each process reads all of it. Shards should be of similar
    size, since the groups' epochs are as long as their shards. The records of `KEPT_BLOCKS` blocks
    are kept in a process at most, over all groups, and those of one group's block while it is read.

    Args:
        shards: the records.
        encode: makes a document of a record; called when a lane reaches it, never before.
        seed: seed of the order of shards and records.
        block_size: number of records that are shuffled together, over all groups; 1: not shuffled.
    """

    num_records: int | None = None
    """Nothing is known without reading; a lane that finds no record in an epoch raises."""

    def __init__(self, shards: Shards, encode: Encode, *, seed: int, block_size: int) -> None:
        self.name = shards.name
        self._shards = shards
        self._encode = encode
        self._seed = seed
        self._block_size = block_size
        self._groups: WeakValueDictionary[tuple[int, int, int], LaneGroup] = WeakValueDictionary()

    def open_reader(
        self,
        lane: int,
        num_lanes: int,
        cursor: SourceCursor,
        policy: SkipPolicy,
        on_bad_record: Callable[[Skipped], None],
    ) -> "StreamReader":
        """Read the documents of a lane from a cursor; see `stages.ShuffledSource`.

        The readers of one process read together: open all of them before the first is used, and in
        the process that uses them.
        """
        group, position = divmod(lane, num_lanes // gcd(len(self._shards), num_lanes))
        # not shared with a parent process: the two would move each other's position in open files
        key = (os.getpid(), num_lanes, group)
        shared = self._groups.get(key)
        if shared is None:
            shared = LaneGroup(
                self._shards,
                group=group,
                num_lanes=num_lanes,
                seed=self._seed,
                block_size=self._block_size,
            )
            self._groups[key] = shared
        return StreamReader(
            self.name, shared, position, self._encode, cursor, policy, on_bad_record
        )


class StreamReader(CountingReader):
    """Reads the documents of one lane; see `ShuffledStream.open_reader`."""

    def __init__(
        self,
        name: str,
        group: LaneGroup,
        position: int,
        encode: Encode,
        cursor: SourceCursor,
        policy: SkipPolicy,
        on_bad_record: Callable[[Skipped], None],
    ) -> None:
        super().__init__(name, cursor, policy, on_bad_record)
        self._group = group
        self._encode = encode
        *start, self._index = cursor.position or (*BlockStart(), 0)
        self._start = BlockStart(*start)
        self._blocks = LaneBlockQueue(group, position, self._start)

    @property
    def approximate_epochs_read(self) -> float:
        """Passes over the group's shards, counted in whole shards."""
        return self._start.epoch + self._start.shard / self._group.num_shards

    def _current_position(self) -> SourcePosition:
        return *self._start, self._index

    def _move_cursor_to_usable_document_or_raise(self) -> Document:
        epoch_ends = records = 0
        while True:
            block = self._blocks.read_current_block()
            if self._index < len(block.records):
                found = self._encode(block.records[self._index])
                if isinstance(found, Document):
                    return found
                self._raise_or_skip_record(found)
            else:
                self._move_behind_current_block()
            if self._start.epoch > block.start.epoch:
                epoch_ends += 1
                records += block.num_records
                self._check_enough_records_for_lanes(block.num_records)
                self._check_epochs_without_document(epoch_ends, records, block.num_records)

    def _check_enough_records_for_lanes(self, records_in_epoch: int) -> None:
        """Check that the group's epoch has a record for each of its lanes.

        Raises:
            UserError: it has fewer.
        """
        lanes = self._group.num_lanes
        if records_in_epoch < lanes:
            raise UserError(
                f"{records_in_epoch} documents in {self._group.num_shards} shards are fewer than "
                f"the {lanes} rows of a step that share them: each reads documents of its own",
                where=self._name,
                remedy="use fewer rows per step, or more documents; or training.streaming=false, "
                "where the documents do not depend on the size of single files",
            )

    def _check_epochs_without_document(
        self, epoch_ends: int, records_read: int, records_in_last_epoch: int
    ) -> None:
        """Give up after epochs without a document; the first of them may not have been read whole.

        Raises:
            UserError: there were many, or many records in them.
        """
        # the order changes with the epoch, and may still bring some
        if epoch_ends >= EMPTY_PASSES or (epoch_ends > 1 and records_read >= EMPTY_DOCUMENTS):
            raise self._no_text_error(f"documents, {records_in_last_epoch} in the last pass")

    def _move_to_next_record(self) -> None:
        self._index += 1
        if self._index == len(self._blocks.read_current_block().records):
            self._move_behind_current_block()

    def _move_behind_current_block(self) -> None:
        self._start = self._blocks.read_current_block().end
        self._index = 0
        self._blocks.drop_current_block()
