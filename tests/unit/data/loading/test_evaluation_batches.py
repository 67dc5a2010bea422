"""Laws of an evaluation's rows: the same on any number of ranks, every token a target once."""

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.loading.evaluation_batches import (
    EvaluationBatches,
    pack_evaluation_batches,
    pack_single_pass,
)
from flame_accel.data.loading.micro_batch import IGNORED_LABEL

TEXTS = ["abcdefghijklmnopqrstuvwxyz", "", "na\u00efve", "0123456789" * 3, "last"]
PAD = 999
TOKENS = [np.array([*text.encode(), 256]) for text in TEXTS]
FOUND: list[tuple[Document | Skipped, int]] = [
    (Document(tokens) if text else Skipped("empty", "line 2"), len(text.encode()))
    for tokens, text in zip(TOKENS, TEXTS, strict=True)
]
PACKINGS = pytest.mark.parametrize(
    "packing",
    [
        Packing(seq_len=8, padding=PAD),
        Packing(seq_len=8, context_len=8, padding=PAD),
        Packing(seq_len=9, context_len=5, padding=PAD),
        Packing(seq_len=9, context_len=7, best_fit=True, padding=PAD),
    ],
    ids=["fixed", "varlen", "varlen, short context", "best fit"],
)


def build(
    packing: Packing,
    *,
    rank: int = 0,
    world_size: int = 1,
    max_tokens: int = 0,
    max_bad: int | None = None,
    found: Iterable[tuple[Document | Skipped, int]] = FOUND,
) -> EvaluationBatches:
    return pack_evaluation_batches(
        found,
        packing,
        name="data",
        policy=SkipPolicy(max_bad),
        tokens_per_batch=2 * packing.seq_len,
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
    whole = [tokens.tolist() for tokens, text in zip(TOKENS, TEXTS, strict=True) if text]
    documents = whole if packing.varlen else [sum(whole, start=list[int]())]
    expected = Counter(pair for tokens in documents for pair in pairwise(tokens))
    batches = build(packing)
    assert Counter(targets(batches)) == expected
    assert targets(batches) == targets(batches)
    assert batches.num_target_bytes == sum(len(text.encode()) for text in TEXTS)


@PACKINGS
def test_only_tokens_that_the_loss_is_for_are_targets(packing: Packing) -> None:
    tokens = np.arange(20)
    chosen = tokens % 3 == 1
    batches = build(packing, found=[(Document(tokens, chosen), 5), (Document(tokens + 100), 5)])
    inner = {target for _, target in targets(batches) if target < 100}
    assert inner == set(tokens[chosen].tolist())
    assert sum(target >= 100 for _, target in targets(batches)) == 19 + (not packing.varlen)


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
        len(targets(build(Packing(seq_len=8), max_tokens=n))) + 1 for n in (1, 27, 28, 34, 35, 999)
    ]
    # tokens of one document, two, three and all four
    one, two, three, four = accumulate(len(text.encode()) + 1 for text in TEXTS if text)
    assert taken == [one, one, two, two, three, four]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(2, 12),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_padding_comes_only_behind_the_last_document(
    lengths: list[int], seq_len: int, varlen: bool
) -> None:
    packing = Packing(seq_len=seq_len, context_len=seq_len if varlen else None, padding=PAD)
    documents = [Document(np.arange(length)) for length in lengths]
    rows = np.concatenate([row.tokens for row in pack_single_pass(documents, packing)])
    padded = np.flatnonzero(rows == PAD)
    assert (np.diff(padded) == 1).all()
    assert len(padded) == 0 or padded[-1] == len(rows) - 1
    assert len(padded) < 2 * seq_len


def test_records_that_give_no_document_follow_the_policy() -> None:
    damaged = Skipped("damaged", "a.jsonl, line 3", "not JSON")
    found = [*FOUND, (damaged, 0), (damaged, 0)]
    packing = Packing(seq_len=8)
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: not JSON\n.*max_bad_records"):
        build(packing, found=found)
    with pytest.raises(UserError, match=r"line 2: the document is empty"):
        build(packing, found=found, max_bad=0)
    with pytest.raises(UserError, match=r"line 3: 3 bad records are more than .* 2"):
        build(packing, found=found, max_bad=2)
    assert targets(build(packing, found=found, max_bad=3)) == targets(build(packing))
    with pytest.raises(UserError, match="none of its 2 documents can be evaluated on"):
        build(packing, found=[(Skipped("held out"), 0)] * 2)
