"""Statistics of lengths, against numbers counted by hand; every document is in its bin."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flame_accel.commands.data.document_lengths import (
    LengthBin,
    compute_length_statistics,
    count_lengths_by_power_of_two,
    format_histogram,
    format_length_statistics_and_histogram,
    save_histogram_png,
)

PNG = b"\x89PNG\r\n\x1a\n"


def test_lengths_are_described_by_documents_that_there_are():
    lengths = np.arange(1, 101)
    assert compute_length_statistics(lengths) == (1, 50, 50.5, 90, 99, 100)
    assert compute_length_statistics(np.array([3])) == (3, 3, 3.0, 3, 3, 3)


def test_bins_go_from_a_power_of_two_to_the_next():
    bins = count_lengths_by_power_of_two(np.array([1, 2, 3, 16, 31, 32]))
    assert bins[:2] == [LengthBin(1, 1, 1), LengthBin(2, 3, 2)]
    assert bins[4:] == [LengthBin(16, 31, 2), LengthBin(32, 63, 1)]
    assert [b.count for b in bins[2:4]] == [0, 0]


@given(st.lists(st.integers(1, 2**29), min_size=1, max_size=200))
def test_every_document_is_in_the_bin_of_its_length(lengths):
    bins = count_lengths_by_power_of_two(np.array(lengths))
    assert sum(b.count for b in bins) == len(lengths)
    for low, high, count in bins:
        assert count == sum(low <= length <= high for length in lengths)
    drawn = list(format_histogram(bins))
    assert all(len(line) <= 78 for line in drawn)
    assert [("#" in line) for line in drawn] == [b.count > 0 for b in bins]


def test_the_lengths_say_what_is_longer_than_a_row():
    lines = list(format_length_statistics_and_histogram(np.array([1, 2, 3, 4000]), {"a row": 3}))
    assert lines[0] == "lengths    median 2, mean 1,001.5, 1 to 4,000 tokens"
    assert lines[2] == "           1 (25.0%) longer than a row, 3"


def test_the_picture_is_a_png(tmp_path: Path):
    path = tmp_path / "pictures" / "lengths.png"
    save_histogram_png(path, {"a": np.array([1, 10, 100]), "b": np.array([7])}, {"a row": 64})
    assert path.read_bytes().startswith(PNG)
