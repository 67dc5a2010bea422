"""Scores of targets against torch computed in one piece, and answers counted one by one."""

import pytest
import torch
from torch.nn import functional

from flame_accel.evaluation.target_scores import (
    CHUNK_TOKENS,
    TargetScores,
    count_answers,
    next_labels,
    score_targets,
)


def test_scores_are_those_of_the_next_tokens_in_one_piece():
    torch.manual_seed(0)
    logits = torch.randn(3, CHUNK_TOKENS, 11)
    labels = torch.randint(11, (3, CHUNK_TOKENS))
    labels[0, 5:900] = -100
    scores = score_targets(logits, next_labels(labels))
    flat, wanted = logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten()
    assert scores.is_target.sum() == (wanted != -100).sum()
    total = functional.cross_entropy(flat, wanted, reduction="sum").item()
    assert scores.nats.sum().item() == pytest.approx(total)
    assert scores.is_correct.sum() == (flat.argmax(-1) == wanted).sum()
    assert not scores.nats[~scores.is_target].any()


def test_the_score_of_a_row_has_the_same_bits_in_any_batch():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 40, 11), torch.randint(11, (5, 40))
    together = score_targets(logits, targets)
    for row in range(5):
        alone = score_targets(logits[row : row + 1], targets[row : row + 1])
        assert torch.equal(alone.nats[0], together.nats[row])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # . no target, R a predicted one, W another
        ("..RR.W.R", (3, 2)),
        ("RRRRRRRR", (1, 1)),
        ("RRRWRRRR", (1, 0)),
        ("........", (0, 0)),
        ("R.W.R.W.", (4, 2)),
        (".......W", (1, 0)),
        ("WWRR.RRR", (2, 1)),
    ],
)
def test_an_answer_is_right_if_all_of_its_tokens_are(row: str, expected: tuple[int, int]):
    other = ".RWR.R.."
    references = torch.tensor([[-100 if c == "." else 1 for c in text] for text in (row, other)])
    predictions = torch.tensor([[int(c == "R") for c in text] for text in (row, other)])
    scores = TargetScores(torch.zeros(2, 8), predictions, references)
    assert count_answers(scores).tolist() == [list(expected), [2, 1]]
