"""What a step holds depends on the data, the seed and the rows of a step alone.

Not on ranks, worker processes and micro-batches. Over an epoch every token is a target once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.cursors import LaneCursor
from flame_accel.data.from_options import (
    build_lanes,
)
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.workers import LoaderOptions, WorkerStep, start_packing_workers
from tests.helpers.data_runs import EOS, KINDS, ROWS, STEPS, TEXTS, Case, play

WITH_PROCESSES = {"one table", "one stream, best fit", "three tables, best fit", "three streams"}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("kind", KINDS)
def test_steps_do_not_depend_on_ranks_and_workers_and_micro_batches(
    cases: Callable[[str], Case], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are packed once for all splits into micro-batches, which are made of what workers give.

    Processes take long to start: of each pair of kinds that read alike only one gets some.
    """
    case = cases(kind)
    given: dict[tuple[range, int], list[WorkerStep | UserError]] = {}

    def start_once(
        lanes: Lanes, numbers: range, cursors: Sequence[LaneCursor], options: LoaderOptions
    ) -> Iterator[WorkerStep | UserError]:
        key = numbers, options.num_workers
        if key not in given:
            steps = start_packing_workers(lanes, numbers, cursors, options)
            given[key] = [*islice(steps, STEPS * max(1, options.num_workers_for(numbers)))]
        return iter(given[key])

    monkeypatch.setattr("flame_accel.data.loading.step_batches.start_packing_workers", start_once)
    for world_size in (1, 2, 4):
        for num_workers in (0, 1, 3) if kind in WITH_PROCESSES else (0,):
            for accumulation in (1, 2, 4):
                split = {
                    "world_size": world_size,
                    "accumulation": accumulation,
                    "num_workers": num_workers,
                }
                found, state = play(case.training, case.data, STEPS, **split)
                assert np.array_equal(found, case.steps), split
                # workers have read further than this
                assert state == case.states[-1]


def documents_of(lanes: Lanes, lane: int) -> Iterator[tuple[int, list[int]]]:
    """Epoch and tokens of the documents that the lane of a single source reads."""
    (reader,) = lanes.open_readers(lane, lanes.start_cursor, lambda skipped: None)
    while True:
        tokens = reader.peek().tokens.tolist()
        yield reader.cursor.position[0], tokens
        reader.consume_peeked()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("one")])
def test_an_epoch_has_every_token_as_a_target_once(cases: Callable[[str], Case], kind: str) -> None:
    """Each lane's targets are the tokens of its documents but the first of each (without varlen of
    the lane), and the documents of all lanes in the first epoch are those of the data.
    """
    case = cases(kind)
    lanes = build_lanes(case.training, case.data, num_lanes=ROWS)
    in_epoch: Counter[tuple[int, ...]] = Counter()
    for lane in range(ROWS):
        labels = case.steps[:, lane, 1]
        # with best fit between two windows, else anywhere
        places = [state["cursors"][lane] for state in case.states]
        end = max(i for i, (_, _, row, _) in enumerate(places) if row == 0)
        found = labels[:end][labels[:end] != IGNORED_LABEL].tolist()
        documents = documents_of(lanes, lane)
        # the last one may be under way
        read = [*islice(documents, places[end][3][-4] + 1)]
        assert read[-1][0] > 1
        if case.training.packing == "best_fit":
            used = [tokens[1:] for _, tokens in read[:-1]]
            assert Counter(found) == Counter(chain(*used))
        else:
            first = int(case.training.varlen)
            targets = [*chain(*(tokens[first:] for _, tokens in read))][1 - first :]
            assert found == targets[: len(found)]
        in_epoch.update(tuple(tokens) for epoch, tokens in read if epoch == 0)
    assert in_epoch == Counter((*text.encode(), EOS) for text in TEXTS["a"] if text)
