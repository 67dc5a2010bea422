"""Passes over rows: exact sums whatever the batches and ranks, and the loss at every position."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.documents import Document, EncodedRecord
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.loading.evaluation_batches import EvaluationBatches, pack_evaluation_batches
from flame_accel.evaluation.validate import PassResult, RowSums, evaluate_rows

VOCABULARY = 11
TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
LENGTHS = (5, 17, 40, 3, 29, 64)


class Bigrams(torch.nn.Module):
    """The logits of a token depend on the token before it; its cache does nothing."""

    def forward(self, input_ids, use_cache, past_key_values=None, cu_seqlens=None):
        return SimpleNamespace(logits=TABLE[input_ids], past_key_values=() if use_cache else None)


def documents(*, answers: bool = False) -> list[Document]:
    generator = np.random.default_rng(0)
    return [
        Document(
            generator.integers(VOCABULARY, size=length, dtype=np.int32),
            generator.random(length) < 0.4 if answers else None,
        )
        for length in LENGTHS
    ]


def batches(
    packing: Packing, tokens_per_batch: int, *, rank: int = 0, world_size: int = 1, **options: Any
) -> EvaluationBatches:
    return pack_evaluation_batches(
        [EncodedRecord(document, 1) for document in documents(**options)],
        packing,
        name="data",
        policy=SkipPolicy(None),
        tokens_per_batch=tokens_per_batch,
        rank=rank,
        world_size=world_size,
    )


def evaluated(data: EvaluationBatches, **options: Any) -> PassResult:
    return evaluate_rows(Accelerator(cpu=True), Bigrams(), data, position_step=8, **options)


def sorted_rows(*results: PassResult) -> list[tuple[float, ...]]:
    """The rows with targets, of one rank or several."""
    rows = [row for result in results for row in zip(*result.rows, strict=True)]
    return sorted(row for row in rows if row[RowSums._fields.index("targets")])


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize(
    "packing", [Packing(seq_len=16), Packing(seq_len=16, context_len=12)], ids=["fixed", "varlen"]
)
def test_rows_have_the_same_bits_in_any_batches_and_on_any_ranks(packing: Packing, answers: bool):
    expected = sorted_rows(evaluated(batches(packing, 16, answers=answers)))
    assert len(expected) > 5
    for tokens in (32, 160):
        assert sorted_rows(evaluated(batches(packing, tokens, answers=answers))) == expected
    for world_size in (2, 3):
        ranks = [
            evaluated(batches(packing, 32, rank=rank, world_size=world_size, answers=answers))
            for rank in range(world_size)
        ]
        assert sorted_rows(*ranks) == expected


def test_sums_are_those_of_the_documents():
    found = evaluated(batches(Packing(seq_len=16, context_len=64), 32)).rows
    # context_len is cut to the row, whose boundaries are starts of segments
    rows = evaluated(batches(Packing(seq_len=200, context_len=200), 200)).rows
    nats = [
        functional.cross_entropy(
            TABLE[torch.from_numpy(d.tokens[:-1])].double(),
            torch.from_numpy(d.tokens[1:]).long(),
            reduction="sum",
        ).item()
        for d in documents()
    ]
    assert sum(rows.nats) == pytest.approx(sum(nats), rel=1e-6)
    assert sum(rows.targets) == sum(LENGTHS) - len(LENGTHS)
    assert sum(found.targets) == sum(LENGTHS) - len(LENGTHS)


@pytest.mark.parametrize("varlen", [False, True])
def test_the_loss_at_a_position_is_that_of_targets_with_so_many_tokens_before(varlen: bool):
    packing = Packing(seq_len=64, context_len=64 if varlen else None)
    data = batches(packing, 128)
    found = evaluated(data).by_position
    by_position: dict[int, list[float]] = {}
    for batch in data:
        starts = batch["cu_seqlens"][:-1].tolist() if varlen else [0]
        for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            for index in range(1, len(tokens)):
                if labels[index] != -100:
                    before = index - max(start for start in starts if start <= index)
                    loss = -TABLE[tokens[index - 1]].log_softmax(-1)[tokens[index]].item()
                    by_position.setdefault(before, []).append(loss)
    assert found.edges == [*range(0, max(by_position) + 1, 8), max(by_position) + 1]
    for start, stop, loss in zip(found.edges, found.edges[1:], found.loss, strict=False):
        expected = [x for p in range(start, stop) for x in by_position.get(p, [])]
        assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)


@pytest.mark.parametrize("piece_length", [7, 16, 63, 64])
def test_pieces_give_what_whole_rows_give(piece_length: int):
    data = batches(Packing(seq_len=64), 128)
    whole, pieces = evaluated(data), evaluated(data, piece_length=piece_length)
    assert pieces.carried and not whole.carried
    assert pieces[:2] == whole[:2]


def test_a_model_without_a_cache_reads_rows_whole():
    class WithoutCache(Bigrams):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            return SimpleNamespace(logits=output.logits)

    data = batches(Packing(seq_len=64), 128)
    found = evaluate_rows(
        Accelerator(cpu=True), WithoutCache(), data, position_step=8, piece_length=8
    )
    assert not found.carried
    assert found[:2] == evaluated(data)[:2]


def test_tokens_are_those_of_all_targets_in_the_order_of_rows():
    data = batches(Packing(seq_len=64), 128, answers=True)
    predictions: list[int] = []
    references: list[int] = []

    def take(predicted: list[int], wanted: list[int]) -> None:
        predictions.extend(predicted)
        references.extend(wanted)

    found = evaluated(data, take_tokens=take)
    labels = torch.cat([batch["labels"][:, 1:].flatten() for batch in data])
    assert references == labels[labels != -100].tolist()
    right = sum(a == b for a, b in zip(predictions, references, strict=True))
    assert right == sum(found.rows.correct)


def test_a_set_without_targets_has_no_loss_anywhere():
    class NoTargets(list):
        row_length = 8

    batch = {"input_ids": torch.zeros(2, 8).long(), "labels": torch.full((2, 8), -100)}
    found = evaluated(NoTargets([batch]))  # type: ignore[arg-type]
    assert found.rows.targets == [0, 0] and np.isnan(found.by_position.loss).all()
