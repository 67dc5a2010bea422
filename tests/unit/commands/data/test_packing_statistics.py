"""Statistics of packed rows, against numbers counted by hand."""

from flame_accel.commands.data.packing_statistics import (
    PackingStatistics,
    compute_packing_statistics,
)
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.row_tracing import TracedLane
from tests.helpers.traced_rows import PACKINGS, ROW, LetterDocuments, open_only_reader, trace_rows


def test_packing_figures_of_rows_counted_by_hand():
    # 10, 20 of 50, 2 of 50; then 20, 11 of 50, and a first token that comes again
    packed = compute_packing_statistics(trace_rows([10, 50], PACKINGS["varlen"], 2), 1)
    assert packed.positions == 2 * ROW and packed.padding == 0
    # of the first document the second half are targets
    assert packed.targets == 5 + 19 + 1 + 19 + 10 + 0
    assert (packed.documents, packed.documents_in_rows, packed.cut_documents) == (3, 4, 1)
    # three of the 64 places hold a token again, the last before a cut
    assert packed.tokens_of_sources == [ROW * 2 - 3]
    # pieces of 18, alone in their rows
    packed = compute_packing_statistics(trace_rows([18], PACKINGS["best_fit"], 3), 1)
    assert packed == PackingStatistics(3, 3 * ROW, 3 * 9, 3 * 14, 3, 3, 0, [3 * 18])


def test_shares_of_sources_are_those_of_the_tokens_read():
    sources = [ShuffledTable(LetterDocuments([7] * 40), seed=s) for s in (0, 1)]
    lane = TracedLane(
        [open_only_reader(source) for source in sources], [1.0, 3.0], PACKINGS["rows"], 0
    )
    rows = [lane.next_row() for _ in range(50)]
    first, second = compute_packing_statistics(rows, 2).tokens_of_sources
    assert first + second == 50 * (ROW - 1) + 1
    # within a document of the shares, and one that is under way
    assert abs(first - (first + second) / 4) <= 14
