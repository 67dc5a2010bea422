"""What the `data` command says of documents and rows, against figures that are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.commands.data.figures import (
    Bin,
    Packed,
    Total,
    bin_lengths,
    describe_lengths,
    describe_packing,
    estimate_total,
)
from flame_accel.commands.data.figures_text import draw_histogram, draw_lengths, write_picture
from flame_accel.commands.data.rows_text import Names, draw_rows
from flame_accel.commands.data.samples import count_records, spread_evenly
from flame_accel.commands.data.tracing import TracedLane, TracedRow
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.row_packing import Lane
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.stages import DocumentReader

EOS = 256
ROW = 32
PACKINGS = {
    "rows": Packing(seq_len=ROW),
    "varlen": Packing(seq_len=ROW, context_len=20),
    "best_fit": Packing(seq_len=ROW, context_len=20, best_fit=True, padding=7),
}
PNG = b"\x89PNG\r\n\x1a\n"


class FakeDocuments:
    """Document i is bytes of its number and eos; of every third only the second half is learnt."""

    name = "fake"
    fingerprint = ""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document | Skipped:
        length = self.lengths[index]
        if not length:
            return Skipped("empty")
        tokens = np.array([65 + index % 26] * (length - 1) + [EOS])
        return Document(tokens, np.arange(length) >= length // 2 if index % 3 == 0 else None)


def in_order(documents: FakeDocuments) -> DocumentReader:
    """The only lane's reader, with the documents in their own order in the first epoch."""
    source = ShuffledTable(documents, seed=0)
    source._order = _Identity(len(documents))
    return read(source)


class _Identity:
    def __init__(self, num_documents: int) -> None:
        self.num_documents = num_documents

    def documents(self, epoch: int, positions: Sequence[int]) -> list[int]:
        return list(positions)


def read(source: ShuffledTable) -> DocumentReader:
    return source.open_reader(0, 1, SourceCursor(), SkipPolicy(), lambda skipped: None)


def trace(lengths: Sequence[int], packing: Packing, num_rows: int) -> list[TracedRow]:
    lane = TracedLane([in_order(FakeDocuments(lengths))], [1.0], packing, 0)
    return [lane.next_row() for _ in range(num_rows)]


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 70), min_size=3, max_size=9), min_size=1, max_size=3)
)
def test_traced_rows_are_the_rows_of_the_lane(packing, lengths):
    sources = [ShuffledTable(FakeDocuments([*of, 5]), seed=s) for s, of in enumerate(lengths)]
    shares = [1.0, 2.5, 0.5][: len(sources)]
    readers = [read(source) for source in sources]
    lane = Lane(readers, shares, packing, LaneCursor(sources=(SourceCursor(),) * len(sources)))
    traced = TracedLane([read(source) for source in sources], shares, packing, 0)
    for _ in range(40):
        found, row = traced.next_row(), lane.next_row()
        assert np.array_equal(found.tokens, row.tokens)
        targets = np.ones(ROW, dtype=bool) if row.targets is None else row.targets.copy()
        targets[row.starts] = False
        assert np.array_equal(found.targets, targets)
        assert [piece.start for piece in found.pieces if piece.is_segment] == row.starts
        assert np.array_equal(np.concatenate([p.tokens for p in found.pieces]), row.tokens)
        padding = sum(len(piece.tokens) for piece in found.pieces if piece.document is None)
        assert padding == row.padding


def test_pieces_say_where_their_tokens_stand_in_the_document():
    first, second = trace([10, 0, 50], PACKINGS["rows"], 2)
    shown = [(p.start, p.is_segment, p.offset, p.end, p.length) for p in first.pieces]
    assert shown == [(0, True, 0, 10, 10), (10, False, 0, 22, 50)]
    shown = [(p.start, p.is_segment, p.offset, p.end, p.length) for p in second.pieces]
    assert shown == [(0, True, 21, 50, 50), (29, False, 0, 3, 10)]


def test_packing_figures_of_rows_counted_by_hand():
    # 10, 20 of 50, 2 of 50; then 20, 11 of 50, and a first token that comes again
    packed = describe_packing(trace([10, 50], PACKINGS["varlen"], 2), 1)
    assert packed.tokens == 2 * ROW and packed.padding == 0
    # of the first document the second half are targets
    assert packed.targets == 5 + 19 + 1 + 19 + 10 + 0
    assert (packed.documents, packed.documents_in_rows, packed.cut) == (3, 4, 1)
    # three of the 64 places hold a token again, the last before a cut
    assert packed.tokens_of_sources == [ROW * 2 - 3]
    # pieces of 18, alone in their rows
    packed = describe_packing(trace([18], PACKINGS["best_fit"], 3), 1)
    assert packed == Packed(3, 3 * ROW, 3 * 9, 3 * 14, 3, 3, 0, [3 * 18])


def test_shares_of_sources_are_those_of_the_tokens_read():
    sources = [ShuffledTable(FakeDocuments([7] * 40), seed=s) for s in (0, 1)]
    lane = TracedLane([read(source) for source in sources], [1.0, 3.0], PACKINGS["rows"], 0)
    rows = [lane.next_row() for _ in range(50)]
    first, second = describe_packing(rows, 2).tokens_of_sources
    assert first + second == 50 * (ROW - 1) + 1
    # within a document of the shares, and one that is under way
    assert abs(first - (first + second) / 4) <= 14


def test_lengths_are_described_by_documents_that_there_are():
    lengths = np.arange(1, 101)
    assert describe_lengths(lengths) == (1, 50, 50.5, 90, 99, 100)
    assert describe_lengths(np.array([3])) == (3, 3, 3.0, 3, 3, 3)


def test_bins_go_from_a_power_of_two_to_the_next():
    bins = bin_lengths(np.array([1, 2, 3, 16, 31, 32]))
    assert bins[:2] == [Bin(1, 1, 1), Bin(2, 3, 2)]
    assert bins[4:] == [Bin(16, 31, 2), Bin(32, 63, 1)]
    assert [b.count for b in bins[2:4]] == [0, 0]


@given(st.lists(st.integers(1, 2**29), min_size=1, max_size=200))
def test_every_document_is_in_the_bin_of_its_length(lengths):
    bins = bin_lengths(np.array(lengths))
    assert sum(b.count for b in bins) == len(lengths)
    for low, high, count in bins:
        assert count == sum(low <= length <= high for length in lengths)
    drawn = list(draw_histogram(bins))
    assert all(len(line) <= 78 for line in drawn)
    assert [("#" in line) for line in drawn] == [b.count > 0 for b in bins]


def test_a_total_is_exact_where_all_was_read_and_else_within_its_error():
    lengths = np.random.default_rng(0).integers(1, 1000, 5000)
    assert estimate_total(lengths, 5000, 5000) == Total(float(lengths.sum()))
    within = 0
    for start in range(50):
        total = estimate_total(lengths[start::50], 100, 5000)
        within += abs(total.tokens - lengths.sum()) <= total.error
    # two standard errors: 19 of 20
    assert within >= 45
    # records without a document are part of the mean
    assert estimate_total(np.array([4, 4]), 4, 40).tokens == 80


def test_a_sample_counts_every_record_once():
    records = [
        Document(np.array([1, 2, EOS])),
        Skipped("empty"),
        Skipped("held out"),
        *[Skipped("damaged", f"d.jsonl:{line}", "no JSON") for line in range(9)],
        Document(np.array([EOS])),
    ]
    sample = count_records((record, 5) for record in records)
    assert sample.num_read == len(records) == 13
    assert sample.lengths.tolist() == [3, 1] and sample.num_bytes == 10
    assert (sample.num_empty, sample.num_held_out, sample.num_damaged) == (1, 1, 9)
    assert [skipped.where for skipped in sample.damaged] == [f"d.jsonl:{i}" for i in range(5)]


def test_a_sample_is_spread_evenly():
    assert spread_evenly(10, 5) == [0, 2, 4, 6, 8]
    assert spread_evenly(3, 5) == spread_evenly(3, 0) == [0, 1, 2]
    assert spread_evenly(0, 5) == []


NAMES = Names(["fake"], lambda ids: "".join(map(chr, ids)), None, EOS)


def draw(lengths: Sequence[int], packing: Packing, names: Names = NAMES) -> list[str]:
    lines = list(draw_rows(trace(lengths, packing, 1), names))
    assert all(len(line) <= 78 for line in lines)
    return lines[[line.startswith("lane") for line in lines].index(True) :]


def test_rows_show_where_nothing_crosses_and_what_is_cut():
    assert draw([5, 10, 90], PACKINGS["rows"]) == [
        "lane 0: 32 tokens, 30 targets",
        "  === at 0: 5 tokens, a whole document",
        '      masked  "AA"',
        '      loss    "AA" eos',
        "  --- at 5: 10 tokens, a whole document",
        '      "BBBBBBBBB" eos',
        "  --- at 15: 17 tokens, tokens 0-16 of 90; goes on",
        '      "CCCCCCCCCCCCCCCCC"',
    ]
    varlen = draw([2, 10, 90], PACKINGS["varlen"])
    assert [line[2:5] for line in varlen if " at " in line] == ["==="] * 3
    # 1 of 2, 9 of 10, 19 of 20
    assert varlen[0] == "lane 0: 32 tokens, 29 targets"


def test_rows_show_padding():
    assert draw([1, 2], PACKINGS["best_fit"])[0].startswith("lane 0: 32 tokens, ")
    lines = draw([18, 18, 18] * 40, PACKINGS["best_fit"])
    assert lines[-1] == "  === at 18: 14 tokens of padding, no targets"


def test_of_a_row_with_many_documents_some_are_shown():
    lines = draw([2] * 16, PACKINGS["rows"])
    starts = [int(line.split()[2].rstrip(":")) for line in lines if " at " in line]
    assert starts == [*range(0, 20, 2), 30]
    assert "  and 5 more pieces, then the last one" in lines
    assert not any("more pieces" in line for line in draw([3] * 11, PACKINGS["rows"]))


def test_texts_are_escaped_and_shortened():
    text = "a\n\t\x1b" * 200
    names = NAMES._replace(decode=lambda ids: text[: len(ids)], bos=65)
    lines = draw([200, 200], Packing(seq_len=64), names)
    # 100 of the tokens are masked
    assert lines[2].startswith('      bos "\\n') or lines[2].startswith("      masked  bos ")
    assert "\\x1b" in lines[2] and '" ... "' in lines[2]


def test_the_lengths_say_what_is_longer_than_a_row():
    lines = list(draw_lengths(np.array([1, 2, 3, 4000]), {"a row": 3}))
    assert lines[0] == "lengths    median 2, mean 1,001.5, 1 to 4,000 tokens"
    assert lines[2] == "           1 (25.0%) longer than a row, 3"


def test_the_picture_is_a_png(tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "pictures" / "lengths.png"
    write_picture(path, {"a": np.array([1, 10, 100]), "b": np.array([7])}, {"a row": 64})
    assert path.read_bytes().startswith(PNG)
