"""Steps: an iteration resumes behind the last one, and progress is counted."""

from itertools import islice

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.lanes.rows import Packing
from tests.helpers.numbered_batches import FIXED, NUM_LANES, STEPS, build, content


def test_an_iteration_resumes_where_the_last_one_was_left(streams: dict) -> None:
    batches = build(FIXED, num_workers=1)
    found = [content(step, FIXED) for _ in range(3) for step in islice(batches, 2)]
    assert found == streams[False][:6]


def test_the_efficiency_of_packing_is_what_the_rows_show() -> None:
    packing = Packing(seq_len=64, context_len=64, best_fit=True, padding=99_999)
    batches = build(packing)
    rows = [ids for step in islice(batches, 5) for ids, *_ in content(step, packing)]
    padding = sum(token == 99_999 for ids in rows for token in ids)
    assert padding > 0
    assert batches.packing_efficiency_of_rank == pytest.approx(1 - padding / (64 * len(rows)))


def test_fewer_documents_than_lanes_names_both_and_the_remedies() -> None:
    with pytest.raises(UserError, match="50 documents are fewer than the 64 rows of a step"):
        build(FIXED, world_size=4, accumulation=2, num_lanes=64)


def test_progress_counts_documents() -> None:
    batches = build(FIXED)
    assert batches.max_source_epoch_of_rank == 0
    epochs = [batches.max_source_epoch_of_rank for _ in islice(batches, STEPS)]
    assert epochs == sorted(epochs)
    assert epochs[-1] > 1
    places = [source for _, _, _, source in batches.state_dict()["cursors"]]
    assert batches.counts_of_rank.consumed == sum(
        epoch * len(range(lane, 50, NUM_LANES)) + position
        for lane, (epoch, position, *_) in enumerate(places)
    )
    assert batches.counts_of_rank.skipped == batches.counts_of_rank.bad == 0
    assert batches.packing_efficiency_of_rank == 1
