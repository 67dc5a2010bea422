"""How much of each dataset a run reads, against numbers counted by hand."""

import pytest

from flame_accel.commands.data.dataset_sampling import TokenEstimate
from flame_accel.commands.data.mixture_statistics import (
    DatasetUse,
    compute_dataset_uses,
    format_mixture_table,
)
from flame_accel.commands.data.packing_statistics import PackingStatistics

# of 40 positions, 30 hold new tokens
PACKING = PackingStatistics(
    rows=4,
    positions=40,
    targets=26,
    padding=6,
    documents=5,
    documents_in_rows=7,
    cut_documents=2,
    tokens_of_sources=[10, 20],
)


def test_padding_and_repeated_tokens_are_no_tokens_of_a_dataset():
    uses = compute_dataset_uses(
        [0.25, 0.75], [TokenEstimate(1500.0), TokenEstimate(9000.0)], PACKING, 4000
    )
    assert uses == [DatasetUse(0.25, 750.0, 0.5), DatasetUse(0.75, 2250.0, 0.25)]


@pytest.mark.parametrize("total", [None, TokenEstimate(0.0)], ids=["stream", "no document"])
def test_epochs_are_unknown_without_a_size(total):
    (use,) = compute_dataset_uses([1.0], [total], PACKING, 4000)
    assert use == DatasetUse(1.0, 3000.0, None)


def test_the_table_has_a_row_per_dataset_and_says_what_is_no_new_token():
    uses = [DatasetUse(0.25, 750.0, 0.5), DatasetUse(0.75, 2250.0, None)]
    head, *rows, rest, unknown = format_mixture_table(["a", "b" * 40], uses, [10, 20], 4000)
    assert head.split() == ["asked", "for", "measured", "tokens", "epochs"]
    assert [row.split() for row in rows] == [
        ["a", "25.00%", "33.33%", "750", "0.50"],
        ["..." + "b" * 26, "75.00%", "66.67%", "2,250", "?"],
    ]
    assert rest == (
        "4,000 positions in rows, 25.00% of them padding or tokens repeated after a cut"
    )
    assert "--documents" in unknown
    assert len({len(line) for line in (head, *rows)}) == 1
