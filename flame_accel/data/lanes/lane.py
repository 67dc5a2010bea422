"""Lanes: lane `l` gives row `l` of every step, from documents of its own; any cursor resumes it.

Which documents a lane reads is decided by the readers of its sources, how they fill rows by the
packers. Ranks, workers and steps are in `loading`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Skipped
from flame_accel.data.lanes.best_fit_packing import BestFitPacker
from flame_accel.data.lanes.mixture import MixtureReader
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.sequential_packing import SequentialPacker
from flame_accel.data.stages import DocumentReader, ShuffledSource

Lane = SequentialPacker | BestFitPacker
"""The rows of one lane; `cursor` says where the next one starts."""


def build_lane(
    readers: Sequence[DocumentReader],
    shares: Sequence[float],
    packing: Packing,
    cursor: LaneCursor,
) -> Lane:
    """The rows of one lane, from a cursor.

    Args:
        readers: one reader per source, each from its cursor in `cursor.sources`.
        shares: of each source in the tokens; only their proportions matter.
        packing: how rows are filled.
        cursor: where to start; from a lane of the same sources, shares and packing.
    """
    assert packing.varlen or not packing.best_fit
    mixture = MixtureReader(readers, shares, cursor.source)
    if packing.best_fit:
        return BestFitPacker(mixture, packing, cursor.row)
    return SequentialPacker(mixture, packing, cursor.offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lanes:
    """What all lanes of a run have in common, and opens each of them."""

    sources: Sequence[ShuffledSource]
    """The sources of documents, at least one."""
    shares: Sequence[float]
    """Share of each source in the tokens."""
    packing: Packing
    """How documents fill rows."""
    num_lanes: int
    """Number of lanes: rows per step."""
    policy: SkipPolicy
    """What happens to records that give no document."""
    constant_targets: bool = False
    """Whether all rows have the same number of targets."""

    @property
    def start_cursor(self) -> LaneCursor:
        """The cursor of every lane at the start of a run."""
        return LaneCursor(sources=(SourceCursor(),) * len(self.sources))

    def check_enough_records_if_known(self) -> None:
        """Check that each source has at least as many records as there are lanes.

        Raises:
            UserError: one has fewer, as far as that is known without reading; says both numbers.
        """
        for source in self.sources:
            if source.num_records is not None and source.num_records < self.num_lanes:
                raise UserError(
                    f"{source.num_records} documents are fewer than the {self.num_lanes} rows of "
                    "a step: each row of a step reads documents of its own",
                    where=source.name,
                    remedy="lower --training.batch_size (rows per step are training.batch_size x "
                    "data-parallel ranks x training.gradient_accumulation_steps), or give more "
                    "documents: a plain text file is one document, a line of a .jsonl file is one",
                )

    def open_readers(
        self, lane: int, cursor: LaneCursor, on_bad_record: Callable[[Skipped], None]
    ) -> list[DocumentReader]:
        """The readers of a lane, one per source; each bad record is given to `on_bad_record`."""
        return [
            source.open_reader(lane, self.num_lanes, source_cursor, self.policy, on_bad_record)
            for source, source_cursor in zip(self.sources, cursor.sources, strict=True)
        ]

    def open_lane(
        self, lane: int, cursor: LaneCursor, on_bad_record: Callable[[Skipped], None]
    ) -> Lane:
        """A lane from a cursor; `on_bad_record` is called with every bad record that is skipped."""
        readers = self.open_readers(lane, cursor, on_bad_record)
        return build_lane(readers, self.shares, self.packing, cursor)
