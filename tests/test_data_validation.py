"""Laws of an evaluation's rows: the same on any number of ranks, every token a target once."""

from collections import Counter
from itertools import pairwise

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.lanes.lane import Packing
from flame_accel.data.loading.evaluation import (
    PADDING,
    EvaluationBatches,
    evaluation_batches,
    pack_once,
)
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.sources.documents import Documents
from flame_accel.data.tokens.tokenizer import load_tokenizer

TEXTS = ["abcdefghijklmnopqrstuvwxyz", "", "na\u00efve", "0123456789" * 3, "last"]
DOCUMENTS = Documents(dataset=datasets.Dataset.from_dict({"text": TEXTS}), column="text")
BYTE = load_tokenizer("byte", False)
TOKENS = [[*text.encode(), 256] if text else [] for text in TEXTS]
PACKINGS = pytest.mark.parametrize(
    "packing",
    [Packing(seq_len=8), Packing(seq_len=8, context_len=8), Packing(seq_len=9, context_len=5)],
    ids=["fixed", "varlen", "varlen, short context"],
)


def build(
    packing: Packing, *, rank: int = 0, world_size: int = 1, max_tokens: int = 0
) -> EvaluationBatches:
    return evaluation_batches(
        DOCUMENTS,
        BYTE,
        packing,
        add_bos=False,
        batch_size=2,
        rank=rank,
        world_size=world_size,
        max_tokens=max_tokens,
    )


def targets(batches: EvaluationBatches) -> list[tuple[int, int]]:
    """(token before, target), as a model computes them."""
    found: list[tuple[int, int]] = []
    for batch in batches:
        before = batch["input_ids"][:, :-1].flatten().tolist()
        after = batch["labels"][:, 1:].flatten().tolist()
        pairs = [pair for pair in zip(before, after, strict=True) if pair[1] != IGNORED_LABEL]
        assert batch["num_targets"] == len(pairs)
        assert int(batch["input_ids"].min()) >= 0
        found += pairs
    return found


@PACKINGS
def test_every_token_is_a_target_once(packing: Packing) -> None:
    documents = TOKENS if packing.varlen else [sum(TOKENS, start=list[int]())]
    expected = [pair for tokens in documents for pair in pairwise(tokens)]
    batches = build(packing)
    assert targets(batches) == expected
    assert targets(batches) == expected
    assert (batches.num_documents, batches.num_bytes) == (5, sum(len(t.encode()) for t in TEXTS))
    assert batches.num_tokens == sum(map(len, TOKENS))


@PACKINGS
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_have_as_many_batches_and_together_the_same_targets(
    packing: Packing, world_size: int
) -> None:
    ranks = [build(packing, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(list(rank)) == len(rank) for rank in ranks)
    found = Counter(pair for rank in ranks for pair in targets(rank))
    assert found == Counter(targets(build(packing)))
    shapes = {tuple(batch["input_ids"].shape) for rank in ranks for batch in rank}
    assert shapes == {(1, 2 * packing.seq_len) if packing.varlen else (2, packing.seq_len)}


def test_whole_documents_are_taken_until_there_are_enough_tokens() -> None:
    taken = [
        build(Packing(seq_len=8), max_tokens=n).num_documents for n in (1, 27, 28, 34, 35, 999)
    ]
    assert taken == [1, 1, 3, 3, 4, 5]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    st.integers(2, 12),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_padding_comes_only_behind_the_last_document(
    lengths: list[int], seq_len: int, varlen: bool
) -> None:
    packing = Packing(seq_len=seq_len, context_len=seq_len if varlen else None)
    documents = [np.arange(length, dtype=np.int32) for length in lengths]
    rows = np.concatenate([row.tokens for row in pack_once(documents, packing)])
    padded = np.flatnonzero(rows == PADDING)
    assert (np.diff(padded) == 1).all()
    assert len(padded) == 0 or padded[-1] == len(rows) - 1
    assert len(padded) < 2 * seq_len
