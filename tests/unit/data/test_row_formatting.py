"""Formatted rows show what crosses, what is cut, what is masked and what is padding."""

from collections.abc import Sequence

from flame_accel.data.lanes.rows import Packing
from flame_accel.data.row_formatting import RowVocabulary, format_rows
from tests.helpers.traced_rows import (
    EOS,
    PACKINGS,
    trace_rows,
)

VOCABULARY = RowVocabulary(["fake"], lambda ids: "".join(map(chr, ids)), None, EOS)


def format_first_row(
    lengths: Sequence[int], packing: Packing, vocabulary: RowVocabulary = VOCABULARY
) -> list[str]:
    lines = list(format_rows(trace_rows(lengths, packing, 1), vocabulary))
    assert all(len(line) <= 78 for line in lines)
    return lines[[line.startswith("lane") for line in lines].index(True) :]


def test_rows_show_where_nothing_crosses_and_what_is_cut():
    assert format_first_row([5, 10, 90], PACKINGS["rows"]) == [
        "lane 0: 32 tokens, 30 targets",
        "  === at 0: 5 tokens, a whole document",
        '      masked  "AA"',
        '      loss    "AA" eos',
        "  --- at 5: 10 tokens, a whole document",
        '      "BBBBBBBBB" eos',
        "  --- at 15: 17 tokens, tokens 0-16 of 90; continues",
        '      "CCCCCCCCCCCCCCCCC"',
    ]
    varlen = format_first_row([2, 10, 90], PACKINGS["varlen"])
    assert [line[2:5] for line in varlen if " at " in line] == ["==="] * 3
    # 1 of 2, 9 of 10, 19 of 20
    assert varlen[0] == "lane 0: 32 tokens, 29 targets"


def test_the_legend_says_what_holds_of_these_rows():
    def legend(lengths: Sequence[int], packing: str) -> list[str]:
        lines = format_rows(trace_rows(lengths, PACKINGS[packing], 1), VOCABULARY)
        return [line for line in lines if line.startswith(("---", "==="))]

    row_start = "=== a row begins: state is reset, and the first token is no target"
    assert legend([90], "rows") == [row_start]
    assert legend([5, 90], "rows") == [row_start, "--- the next document: the model sees across"]
    assert legend([2, 90], "varlen") == [
        "=== state is reset and targets stop here: nothing crosses"
    ]


def test_rows_show_padding():
    assert format_first_row([1, 2], PACKINGS["best_fit"])[0].startswith("lane 0: 32 tokens, ")
    lines = format_first_row([18, 18, 18] * 40, PACKINGS["best_fit"])
    assert lines[-1] == "  === at 18: 14 tokens of padding, no targets"


def test_of_a_row_with_many_documents_some_are_shown():
    lines = format_first_row([2] * 16, PACKINGS["rows"])
    starts = [int(line.split()[2].rstrip(":")) for line in lines if " at " in line]
    assert starts == [*range(0, 20, 2), 30]
    assert "  and 5 more pieces, then the last one" in lines
    assert not any("more pieces" in line for line in format_first_row([3] * 11, PACKINGS["rows"]))


def test_texts_are_escaped_and_shortened():
    text = "a\n\t\x1b" * 200
    vocabulary = VOCABULARY._replace(decode=lambda ids: text[: len(ids)], bos=65)
    lines = format_first_row([200, 200], Packing(seq_len=64), vocabulary)
    # 100 of the tokens are masked
    assert lines[2].startswith('      bos "\\n') or lines[2].startswith("      masked  bos ")
    assert "\\x1b" in lines[2] and '" ... "' in lines[2]
