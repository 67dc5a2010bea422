"""Bad records are counted over workers and restarts, logged, and stop the run where they must."""

import logging
from itertools import islice

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import MAX_LOGGED_RECORDS
from flame_accel.data.documents import Skipped
from flame_accel.data.loading.stream_state import merge_rank_states
from tests.helpers.numbered_batches import FIXED, build, content

DAMAGED = {d: Skipped("damaged", f"line {d}", "not JSON") for d in range(0, 50, 4)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_records_are_counted_logged_and_skipped(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    batches = build(FIXED, skipped=DAMAGED, max_bad=99, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        steps = [content(step, FIXED) for step in islice(batches, 20)]
    assert not any(token // 1000 % 4 == 0 for rows in steps for ids, *_ in rows for token in ids)
    assert batches.counts_of_rank.bad == batches.counts_of_rank.skipped > 2 * MAX_LOGGED_RECORDS
    named, counted = caplog.messages[:MAX_LOGGED_RECORDS], caplog.messages[MAX_LOGGED_RECORDS:]
    assert all("bad record skipped: line" in message for message in named)
    assert 1 <= len(counted) <= 2
    assert all("bad records skipped so far: " in message for message in counted)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_records_stop_the_run_behind_the_last_good_step(num_workers: int) -> None:
    batches = build(FIXED, skipped=DAMAGED, max_bad=5, num_workers=num_workers)
    steps = 0
    with pytest.raises(UserError, match=r"\d bad records are more than .* 5; the last one: not"):
        for _ in batches:
            steps += 1
    state = merge_rank_states([batches.state_dict()])
    assert state["steps"] == steps
    assert batches.counts_of_rank.bad <= 5
    further = build(FIXED, skipped=DAMAGED, max_bad=13, state=state)
    found = [content(step, FIXED) for step in islice(further, 2)]
    whole = build(FIXED, skipped=DAMAGED, max_bad=99)
    assert [content(step, FIXED) for step in islice(whole, steps + 2)][steps:] == found


def test_bad_records_of_earlier_starts_count() -> None:
    batches = build(FIXED, skipped=DAMAGED, max_bad=99, num_workers=1)
    assert len([*islice(batches, 10)]) == 10
    state = merge_rank_states([batches.state_dict()])
    assert len([*islice(batches, 10)]) == 10
    last = batches.counts_of_rank.bad
    # two starts, and what the first has read ahead is read again
    further = build(FIXED, skipped=DAMAGED, max_bad=last, state=state, num_workers=1)
    assert [len([*islice(further, 5)]) for _ in range(2)] == [5, 5]
    assert further.counts_of_rank.bad == last
    with pytest.raises(UserError, match=f"{last} bad records are more than .* {last - 1}"):
        list(islice(build(FIXED, skipped=DAMAGED, max_bad=last - 1, state=state), 10))
