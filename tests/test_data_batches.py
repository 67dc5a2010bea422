"""Laws of the loader: a step's rows do not depend on ranks, workers, micro-batches or restarts."""

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from flame_accel.config.errors import UserError
from flame_accel.config.training import TrainingConfig
from flame_accel.data.from_options import build_batches
from flame_accel.data.lanes.lane import Packing
from flame_accel.data.lanes.order import EpochOrder
from flame_accel.data.loading.batches import StepBatches, StepLayout
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.state import accumulation_for, merge_states
from flame_accel.data.loading.workers import LoaderOptions, Stream
from flame_accel.data.sources.documents import Documents
from flame_accel.data.tokens.tokenizer import load_tokenizer

NUM_LANES = 16
LENGTHS = [1 + (37 * d * d) % 61 for d in range(50)]
FIXED = Packing(seq_len=16)
VARLEN = Packing(seq_len=16, context_len=11)
PACKINGS = pytest.mark.parametrize("packing", [FIXED, VARLEN], ids=["fixed", "varlen"])
STEPS = 14
"""More than an epoch: 50 documents of 31 tokens on average, 240 targets in a step."""


def encode(document: int) -> np.ndarray:
    return np.arange(1000 * document, 1000 * document + LENGTHS[document], dtype=np.int32)


def build(
    packing: Packing,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    state: Mapping[str, Any] | None = None,
    identity: Mapping[str, int] | None = None,
    encode: Callable[[int], np.ndarray] = encode,
    num_lanes: int = NUM_LANES,
    **loader: Any,
) -> StepBatches:
    layout = StepLayout(
        micro_batch_size=num_lanes // world_size // accumulation,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
    )
    stream = Stream(
        encode=encode,
        order=EpochOrder(num_documents=len(LENGTHS), seed=1),
        packing=packing,
        num_lanes=num_lanes,
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


@PACKINGS
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_steps_do_not_depend_on_ranks_and_micro_batches(
    streams: dict, packing: Packing, world_size: int, accumulation: int
) -> None:
    found, _ = all_ranks(packing, STEPS, world_size=world_size, accumulation=accumulation)
    assert found == streams[packing.varlen]


@PACKINGS
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_steps_do_not_depend_on_workers(
    streams: dict, packing: Packing, world_size: int, num_workers: int
) -> None:
    found, state = all_ranks(
        packing,
        6,
        world_size=world_size,
        accumulation=4 // world_size,
        num_workers=num_workers,
        prefetch_factor=3,
    )
    assert found == streams[packing.varlen][:6]
    # workers have read further than this
    assert state == all_ranks(packing, 6)[1]


@PACKINGS
@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_resuming_on_other_ranks_equals_not_stopping(
    streams: dict, packing: Packing, cut: int
) -> None:
    expected = streams[packing.varlen]
    first, state = all_ranks(packing, cut, world_size=2, accumulation=2)
    second, state = all_ranks(packing, 3, world_size=4, accumulation=1, state=state)
    third, state = all_ranks(packing, 2, world_size=1, accumulation=4, state=state)
    assert first + second + third == expected[: cut + 5]
    assert state == all_ranks(packing, cut + 5)[1]


@PACKINGS
def test_resuming_with_workers_equals_not_stopping(streams: dict, packing: Packing) -> None:
    first, state = all_ranks(packing, 4, num_workers=2)
    second, _ = all_ranks(packing, 3, world_size=2, num_workers=1, state=state)
    assert first + second == streams[packing.varlen][:7]


@PACKINGS
def test_an_epoch_has_every_token_as_a_target_once(packing: Packing) -> None:
    """Each lane is followed out of its first epoch; targets of the second are cut off."""
    batches = build(packing)
    targets: list[list[int]] = [[] for _ in range(NUM_LANES)]
    for step in batches:
        for lane, (_, labels, _) in enumerate(content(step, packing)):
            targets[lane] += [label for label in labels[1:] if label != IGNORED_LABEL]
        if all(epoch > 0 for epoch, *_ in batches.state_dict()["cursors"]):
            break
    order = EpochOrder(num_documents=len(LENGTHS), seed=1)
    found: Counter[int] = Counter()
    for lane in range(NUM_LANES):
        documents = [order.document(0, p) for p in range(lane, len(LENGTHS), NUM_LANES)]
        lost = len(documents) if packing.varlen else 1
        found.update(targets[lane][: sum(LENGTHS[d] for d in documents) - lost])
        for first in documents if packing.varlen else documents[:1]:
            found[1000 * first] += 1
    assert found == Counter(token for d in range(len(LENGTHS)) for token in encode(d).tolist())


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
    empty = build(FIXED, num_workers=1, encode=lambda d: np.empty(0, dtype=np.int32))
    with pytest.raises(UserError, match="no text in 100 passes") as problem:
        next(iter(empty))
    assert "Traceback" not in str(problem.value)


TEXTS = [f"document {i} " + "\u00e9" * (7 * i % 40) for i in range(20)]
TRAINING = TrainingConfig(batch_size=2, seq_len=32, gradient_accumulation_steps=3, num_workers=0)


def from_texts(
    texts: list[str] = TEXTS, training: TrainingConfig = TRAINING, **options: Any
) -> StepBatches:
    documents = Documents(dataset=Dataset.from_dict({"text": texts}), column="text")
    tokenizer = load_tokenizer("byte", False)
    return build_batches(training, documents, tokenizer, rank=0, world_size=1, **options)


@pytest.mark.parametrize("varlen", [False, True], ids=["fixed", "varlen"])
def test_rows_of_texts_are_their_bytes_and_eos(varlen: bool) -> None:
    training = replace(TRAINING, varlen=varlen)
    step = next(iter(from_texts(training=training)))
    assert len(step) == 3
    order = EpochOrder(num_documents=20, seed=training.seed)
    packing = Packing(seq_len=32, context_len=32 if varlen else None)
    for lane, (ids, _, _) in enumerate(content(step, packing)):
        text = TEXTS[order.document(0, lane)].encode()[:31]
        assert ids[: len(text)] == list(text)


def test_other_data_and_another_tokenizer_are_refused_by_name() -> None:
    batches = from_texts()
    next(iter(batches))
    state = merge_states([batches.state_dict()])
    assert next(iter(from_texts(state=state)))[0]["num_targets"] == 62
    with pytest.raises(UserError, match="content of the documents is"):
        from_texts([*TEXTS[:-1], "changed"], state=state)
    with pytest.raises(UserError, match="documents is 19, the checkpoint has 20"):
        from_texts(TEXTS[:-1], state=state)
    with pytest.raises(UserError, match=r"training\.context_len is 32, .*has None"):
        from_texts(training=replace(TRAINING, varlen=True), state=state)
    changed = {**state, "identity": {**state["identity"], "tokenizer": "another"}}
    with pytest.raises(UserError, match=r"tokenizer is '.*', the checkpoint has 'another'"):
        from_texts(state=changed)


def test_fewer_documents_than_lanes_names_both_and_the_remedies() -> None:
    with pytest.raises(UserError, match="50 documents are fewer than the 64 rows of a step"):
        build(FIXED, world_size=4, accumulation=2, num_lanes=64)


def test_progress_counts_documents() -> None:
    batches = build(FIXED)
    assert batches.epoch == 0
    epochs = [batches.epoch for _ in islice(batches, STEPS)]
    assert epochs == sorted(epochs)
    assert epochs[-1] > 1
    assert batches.skipped_documents == 0


def test_a_state_of_another_stream_is_refused_by_name() -> None:
    _, state = all_ranks(FIXED, 2, identity={"training.seed": 1, "training.seq_len": 16})
    with pytest.raises(
        UserError, match=r"training\.seq_len is 32, the checkpoint has 16"
    ) as problem:
        build(FIXED, state=state, identity={"training.seed": 2, "training.seq_len": 32})
    assert "training.seed is 2, the checkpoint has 1" in str(problem.value)


def test_a_state_of_another_format_is_refused() -> None:
    _, state = all_ranks(FIXED, 1)
    with pytest.raises(UserError, match="has format 99"):
        build(FIXED, state=state | {"format": 99})


def test_other_rows_per_step_are_refused_with_the_accumulation_that_works() -> None:
    _, state = all_ranks(FIXED, 1)
    with pytest.raises(UserError, match=r"use training\.gradient_accumulation_steps 2"):
        build(FIXED, num_lanes=8, world_size=2, accumulation=1, state=state)


def test_the_accumulation_follows_the_ranks() -> None:
    sizes = [accumulation_for(48, micro_batch_size=4, world_size=n) for n in (1, 2, 3, 4, 6, 12)]
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
        accumulation_for(48, micro_batch_size=micro_batch_size, world_size=world_size)


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
