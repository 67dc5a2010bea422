"""Laws of micro-batches: labels stand on their tokens, but for starts and what is no target."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.lanes.rows import Packing, Row
from flame_accel.data.loading.micro_batch import (
    IGNORED_LABEL,
    stack_rows_with_unshifted_masked_labels,
)


@st.composite
def rows_of_one_length(draw: st.DrawFn) -> list[Row]:
    length = draw(st.integers(2, 12))
    tokens = st.lists(st.integers(0, 99), min_size=length, max_size=length)
    targets = st.none() | st.lists(st.booleans(), min_size=length, max_size=length).map(np.array)
    starts = st.sets(st.integers(1, length - 1)).map(lambda others: [0, *sorted(others)])
    row = st.builds(Row, tokens.map(lambda ids: np.array(ids, dtype=np.int32)), starts, targets)
    return draw(st.lists(row, min_size=1, max_size=4))


@given(rows_of_one_length(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_labels_are_what_the_rows_say(rows: list[Row], varlen: bool) -> None:
    length = len(rows[0].tokens)
    packing = Packing(seq_len=length, context_len=length if varlen else None)
    batch = stack_rows_with_unshifted_masked_labels(rows, packing)
    shape = (1, len(rows) * length) if varlen else (len(rows), length)
    assert batch["input_ids"].shape == batch["labels"].shape == shape
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    places = [(row, i) for row in rows for i in range(length)]
    expected = [
        IGNORED_LABEL
        if i in row.starts or (row.targets is not None and not row.targets[i])
        else row.tokens[i]
        for row, i in places
    ]
    assert batch["labels"].flatten().tolist() == expected
    assert batch["input_ids"].flatten().tolist() == [row.tokens[i] for row, i in places]
    # the model shifts labels: what it predicts is what was counted
    assert batch["num_targets"] == int((batch["labels"][..., 1:] != IGNORED_LABEL).sum())


def test_segments_of_all_rows_follow_each_other() -> None:
    tokens = np.arange(4, dtype=np.int32)
    rows = [Row(tokens, [0, 3]), Row(tokens, [0])]
    batch = stack_rows_with_unshifted_masked_labels(rows, Packing(seq_len=4, context_len=4))
    assert "cu_seqlens" in batch
    assert batch["cu_seqlens"].tolist() == [0, 3, 4, 8]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert "cu_seqlens" not in stack_rows_with_unshifted_masked_labels(rows, Packing(seq_len=4))


@pytest.mark.parametrize("targets", [None, np.ones(4, dtype=bool)], ids=["no mask", "mask"])
def test_rows_are_not_written_to(targets: np.ndarray | None) -> None:
    row = Row(np.array([1, 2, 3, 4], dtype=np.int32), [0, 2], targets)
    stack_rows_with_unshifted_masked_labels([row], Packing(seq_len=4))
    assert row.tokens.tolist() == [1, 2, 3, 4]
    assert targets is None or targets.all()
