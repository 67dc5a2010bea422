"""Laws of the loader: a step's rows do not depend on ranks, workers, micro-batches or restarts."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import MAX_LOGGED_RECORDS, SkipPolicy
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.step_batches import StepBatches, StepLayout
from flame_accel.data.loading.stream_state import accumulation_for_rows, merge_states
from flame_accel.data.loading.workers import LoaderOptions, Stream

NUM_LANES = 16
LENGTHS = [1 + (37 * d * d) % 61 for d in range(50)]
FIXED = Packing(seq_len=16)
VARLEN = Packing(seq_len=16, context_len=11)
PACKINGS = pytest.mark.parametrize("packing", [FIXED, VARLEN], ids=["fixed", "varlen"])
STEPS = 14
"""More than an epoch: 50 documents of 31 tokens on average, 240 targets in a step."""


def tokens_of(document: int) -> np.ndarray:
    return np.arange(1000 * document, 1000 * document + LENGTHS[document], dtype=np.int32)


class Numbers:
    """Documents whose tokens say where they are from."""

    name = "numbers"
    fingerprint = "numbers"

    def __init__(self, skipped: Mapping[int, Skipped] | None = None) -> None:
        self.skipped = skipped or {}

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Document | Skipped:
        return self.skipped.get(index) or Document(tokens_of(index))


def build(
    packing: Packing,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    state: Mapping[str, Any] | None = None,
    identity: Mapping[str, int] | None = None,
    num_lanes: int = NUM_LANES,
    documents: Numbers | None = None,
    skipped: Mapping[int, Skipped] | None = None,
    max_bad: int | None = None,
    **loader: Any,
) -> StepBatches:
    layout = StepLayout(
        micro_batch_size=num_lanes // world_size // accumulation,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
    )
    stream = Stream(
        sources=[ShuffledTable(documents or Numbers(skipped), seed=1)],
        shares=[1.0],
        packing=packing,
        num_lanes=num_lanes,
        policy=SkipPolicy(max_bad),
    )
    return StepBatches(
        stream,
        layout,
        LoaderOptions(**loader),
        identity=identity or {"training.seed": 1},
        state=state,
    )


KEPT: list[object] = []
Step = list[tuple[list[int], list[int], list[int]]]


def content(micro_batches: list, packing: Packing) -> Step:
    """Rows of a rank's step: their tokens, labels and segment starts."""
    rows: Step = []
    for batch in micro_batches:
        assert "attention_mask" not in batch
        ids = batch["input_ids"].view(-1, packing.seq_len)
        labels = batch["labels"].view(-1, packing.seq_len)
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["num_targets"] == int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
        starts = np.arange(0, ids.numel(), packing.seq_len)
        if packing.varlen:
            assert batch["input_ids"].shape == (1, ids.numel())
            assert batch["cu_seqlens"].dtype == torch.int32
            assert batch["cu_seqlens"][-1] == ids.numel()
            starts = batch["cu_seqlens"][:-1].numpy()
        for i in range(len(ids)):
            here = starts[(starts // packing.seq_len) == i] - i * packing.seq_len
            rows.append((ids[i].tolist(), labels[i].tolist(), here.tolist()))
    return rows


def all_ranks(
    packing: Packing, steps: int, *, world_size: int = 1, **options: Any
) -> tuple[list[Step], dict]:
    """The rows of each step over all ranks, and the merged state after them, through JSON."""
    ranks = [build(packing, rank=r, world_size=world_size, **options) for r in range(world_size)]
    drawn = [[content(step, packing) for step in islice(rank, steps)] for rank in ranks]
    merged = merge_states([rank.state_dict() for rank in reversed(ranks)])
    return [[*chain(*parts)] for parts in zip(*drawn, strict=True)], json.loads(json.dumps(merged))


@pytest.fixture(scope="module")
def streams() -> dict[bool, list[Step]]:
    return {packing.varlen: all_ranks(packing, STEPS)[0] for packing in (FIXED, VARLEN)}


def test_an_iteration_goes_on_where_the_last_one_was_left(streams: dict) -> None:
    batches = build(FIXED, num_workers=1)
    found = [content(step, FIXED) for _ in range(3) for step in islice(batches, 2)]
    assert found == streams[False][:6]


def test_persistent_workers_stay_and_others_go(streams: dict) -> None:
    batches = build(FIXED, num_workers=2, persistent_workers=True)
    found, workers = [], []
    for _ in range(3):
        found += [content(step, FIXED) for step in islice(batches, 2)]
        workers.append({child.pid for child in multiprocessing.active_children()})
    assert found == streams[False][:6]
    assert workers[0] == workers[1] == workers[2]
    assert len(workers[0]) == 2
    del batches
    assert not workers[0] & {child.pid for child in multiprocessing.active_children()}


def test_there_are_no_more_workers_than_lanes() -> None:
    steps = iter(build(FIXED, world_size=8, rank=3, num_workers=5))
    next(steps)
    assert len(multiprocessing.active_children()) == 2


def test_workers_leave_signals_to_the_run(streams: dict) -> None:
    steps = iter(build(FIXED, num_workers=1, prefetch_factor=1))
    found = [content(next(steps), FIXED)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid or 0, number)
        found.append(content(next(steps), FIXED))
    assert found == streams[False][:4]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_the_system_kills_is_an_error_and_no_endless_wait(num_workers: int) -> None:
    steps = iter(build(FIXED, num_workers=num_workers, prefetch_factor=1))
    next(steps)
    worker = multiprocessing.active_children()[0]
    # as the kernel does when memory runs out
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"pid.*{worker.pid}.*(killed|exited unexpectedly)"):
        for _ in range(100):
            next(steps)


def test_workers_end_with_a_process_that_never_let_go_of_them() -> None:
    def fail() -> None:
        steps = iter(build(FIXED, num_workers=1))
        next(steps)
        # as a traceback does with the loop's frame
        KEPT.append(steps)

    process = multiprocessing.get_context("fork").Process(target=fail)
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 0


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    next(iter(build(FIXED)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_problem_in_a_worker_arrives_as_it_is() -> None:
    empty = build(FIXED, num_workers=1, skipped=dict.fromkeys(range(50), Skipped("empty")))
    with pytest.raises(UserError, match="no text in any of the 50 documents") as problem:
        next(iter(empty))
    assert "Traceback" not in str(problem.value)


class Broken(Numbers):
    def __getitem__(self, index: int) -> Document | Skipped:
        raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_in_a_worker_arrives_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match=r"(?s)worker process 0.*__getitem__.*of ours"):
        next(iter(build(FIXED, num_workers=1, documents=Broken())))


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_run_that_was_killed() -> None:
    ours, theirs = multiprocessing.Pipe()

    def train() -> None:
        # a worker's part of a step is more than a pipe holds: it cannot get rid of what it has read
        steps = iter(build(Packing(seq_len=4096), num_workers=2, prefetch_factor=8))
        next(steps)
        theirs.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    run = multiprocessing.get_context("fork").Process(target=train)
    run.start()
    workers = ours.recv()
    # they read ahead meanwhile
    time.sleep(0.5)
    assert len(workers) == 2
    assert all(map(is_running, workers))
    run.kill()
    run.join()
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


DAMAGED = {d: Skipped("damaged", f"line {d}", "not JSON") for d in range(0, 50, 4)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_records_are_counted_logged_and_passed_over(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    batches = build(FIXED, skipped=DAMAGED, max_bad=99, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        steps = [content(step, FIXED) for step in islice(batches, 20)]
    assert not any(token // 1000 % 4 == 0 for rows in steps for ids, *_ in rows for token in ids)
    assert batches.bad_documents == batches.skipped_documents > 2 * MAX_LOGGED_RECORDS
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
    state = merge_states([batches.state_dict()])
    assert state["steps"] == steps
    assert batches.bad_documents <= 5
    further = build(FIXED, skipped=DAMAGED, max_bad=13, state=state)
    found = [content(step, FIXED) for step in islice(further, 2)]
    whole = build(FIXED, skipped=DAMAGED, max_bad=99)
    assert [content(step, FIXED) for step in islice(whole, steps + 2)][steps:] == found


def test_bad_records_of_earlier_starts_count() -> None:
    batches = build(FIXED, skipped=DAMAGED, max_bad=99, num_workers=1)
    assert len([*islice(batches, 10)]) == 10
    state = merge_states([batches.state_dict()])
    assert len([*islice(batches, 10)]) == 10
    last = batches.bad_documents
    # two starts, and what the first has read ahead is read again
    further = build(FIXED, skipped=DAMAGED, max_bad=last, state=state, num_workers=1)
    assert [len([*islice(further, 5)]) for _ in range(2)] == [5, 5]
    assert further.bad_documents == last
    with pytest.raises(UserError, match=f"{last} bad records are more than .* {last - 1}"):
        list(islice(build(FIXED, skipped=DAMAGED, max_bad=last - 1, state=state), 10))


def test_the_efficiency_of_packing_is_what_the_rows_show() -> None:
    packing = Packing(seq_len=64, context_len=64, best_fit=True, padding=99_999)
    batches = build(packing)
    rows = [ids for step in islice(batches, 5) for ids, *_ in content(step, packing)]
    padding = sum(token == 99_999 for ids in rows for token in ids)
    assert padding > 0
    assert batches.packing_efficiency == pytest.approx(1 - padding / (64 * len(rows)))


def test_fewer_documents_than_lanes_names_both_and_the_remedies() -> None:
    with pytest.raises(UserError, match="50 documents are fewer than the 64 rows of a step"):
        build(FIXED, world_size=4, accumulation=2, num_lanes=64)


def test_progress_counts_documents() -> None:
    batches = build(FIXED)
    assert batches.epoch == 0
    epochs = [batches.epoch for _ in islice(batches, STEPS)]
    assert epochs == sorted(epochs)
    assert epochs[-1] > 1
    places = [source for _, _, _, source in batches.state_dict()["cursors"]]
    assert batches.consumed_documents == sum(
        epoch * len(range(lane, 50, NUM_LANES)) + position
        for lane, (epoch, position, *_) in enumerate(places)
    )
    assert batches.skipped_documents == batches.bad_documents == 0
    assert batches.tokens_per_source == [sum(tokens for *_, tokens in places)]
    assert batches.packing_efficiency == 1


def test_a_state_of_another_stream_is_refused_by_name() -> None:
    _, state = all_ranks(FIXED, 2, identity={"training.seed": 1, "training.seq_len": 16})
    with pytest.raises(
        UserError, match=r"training\.seq_len is 32, the checkpoint has 16"
    ) as problem:
        build(FIXED, state=state, identity={"training.seed": 2, "training.seq_len": 32})
    assert "training.seed is 2, the checkpoint has 1" in str(problem.value)


def test_a_state_of_another_format_is_refused() -> None:
    _, state = all_ranks(FIXED, 1)
    for version in (1, 99):
        with pytest.raises(UserError, match=f"has format {version}, this version reads format 2"):
            build(FIXED, state=state | {"format": version})


def test_other_rows_per_step_are_refused_with_the_accumulation_that_works() -> None:
    _, state = all_ranks(FIXED, 1)
    with pytest.raises(UserError, match=r"use training\.gradient_accumulation_steps 2"):
        build(FIXED, num_lanes=8, world_size=2, accumulation=1, state=state)


def test_the_accumulation_follows_the_ranks() -> None:
    sizes = [
        accumulation_for_rows(48, micro_batch_size=4, world_size=n) for n in (1, 2, 3, 4, 6, 12)
    ]
    assert sizes == [12, 6, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("micro_batch_size", "world_size", "remedy"),
    [
        (4, 5, "that divides it: 1, 2, 3, 4, 6, 8, 12, 16, 24, 48"),
        (5, 4, "can be 1 x 12, 2 x 6, 3 x 4, 4 x 3, 6 x 2, 12 x 1"),
        (64, 1, "can be 1 x 48"),
    ],
    ids=["ranks", "batch size", "too large"],
)
def test_an_impossible_split_names_the_sizes_that_work(
    micro_batch_size: int, world_size: int, remedy: str
) -> None:
    with pytest.raises(UserError, match=remedy):
        accumulation_for_rows(48, micro_batch_size=micro_batch_size, world_size=world_size)


def test_states_of_different_steps_or_too_few_ranks_do_not_merge() -> None:
    ranks = [build(FIXED, rank=r, world_size=2) for r in range(2)]
    next(iter(ranks[0]))
    with pytest.raises(ValueError, match="disagree"):
        merge_states([rank.state_dict() for rank in ranks])
    with pytest.raises(ValueError, match="8 lanes for 16 rows"):
        merge_states([ranks[0].state_dict()])
    with pytest.raises(ValueError, match="lane 0 is missing"):
        merge_states([ranks[1].state_dict()])
    with pytest.raises(ValueError, match="merge the states of all ranks first"):
        build(FIXED, rank=1, world_size=2, state=ranks[0].state_dict())
