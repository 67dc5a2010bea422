"""Validation: sums over any split of the rows, against torch computed in one piece."""

import pytest
import torch
from torch.nn import functional

from flame_accel.evaluation.validate import CHUNK_TOKENS, sum_nats_correct_and_targets


def test_sums_are_those_of_the_shifted_targets_in_one_piece():
    torch.manual_seed(0)
    logits = torch.randn(3, CHUNK_TOKENS, 11)
    labels = torch.randint(11, (3, CHUNK_TOKENS))
    labels[0, 5:900] = -100
    nats, correct, targets = sum_nats_correct_and_targets(logits, labels).tolist()
    flat, wanted = logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten()
    assert targets == (wanted != -100).sum()
    assert nats == pytest.approx(functional.cross_entropy(flat, wanted, reduction="sum").item())
    assert correct == (flat.argmax(-1) == wanted).sum()


def test_rows_of_padding_count_for_nothing():
    sums = sum_nats_correct_and_targets(torch.randn(2, 8, 5), torch.full((2, 8), -100))
    assert sums.tolist() == [0, 0, 0]
