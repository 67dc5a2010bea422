"""Readers of tables of numbered documents, of which some are damaged, empty or held out."""

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.shuffled_table import ShuffledTable, TableReader
from tests.helpers.numbered_documents import Numbers

HELD_OUT = Skipped("held out")


class Records(Numbers):
    """Documents of five tokens, but for some records."""

    def __init__(self, count: int, others: dict[int, Skipped]) -> None:
        super().__init__([5] * count)
        self._others = others

    def __getitem__(self, index: int) -> Document | Skipped:
        return self._others.get(index) or super().__getitem__(index)


def open_reader(
    documents: Numbers,
    *,
    lane: int = 0,
    num_lanes: int = 1,
    cursor: SourceCursor | None = None,
    max_bad: int | None = None,
    reported: list[Skipped] | None = None,
) -> TableReader:
    source = ShuffledTable(documents, seed=7)
    told = [] if reported is None else reported
    return source.open_reader(
        lane, num_lanes, cursor or SourceCursor(), SkipPolicy(max_bad), told.append
    )


def read(reader: TableReader, count: int) -> list[list[int]]:
    found = []
    for _ in range(count):
        found.append(reader.peek().tokens.tolist())
        reader.consume_peeked()
    return found
