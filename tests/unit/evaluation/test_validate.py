"""Validation: sums over any split of the rows, against torch computed in one piece."""

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from flame_accel.evaluation.validate import CHUNK_TOKENS, sum_nats_correct_and_targets, validate


def test_sums_are_those_of_the_shifted_targets_in_one_piece():
    torch.manual_seed(0)
    logits = torch.randn(3, CHUNK_TOKENS, 11)
    labels = torch.randint(11, (3, CHUNK_TOKENS))
    labels[0, 5:900] = -100
    nats, correct, targets = map(float, sum_nats_correct_and_targets(logits, labels))
    flat, wanted = logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten()
    assert targets == (wanted != -100).sum()
    assert nats == pytest.approx(functional.cross_entropy(flat, wanted, reduction="sum").item())
    assert correct == (flat.argmax(-1) == wanted).sum()


def test_rows_of_padding_count_for_nothing():
    sums = sum_nats_correct_and_targets(torch.randn(2, 8, 5), torch.full((2, 8), -100))
    assert [value.item() for value in sums] == [0, 0, 0]


class Batches(list):
    num_target_bytes = 100


def test_the_sums_of_all_ranks_are_added_before_they_are_divided(monkeypatch):
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(0))

    class Model(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=table[input_ids])

    mine, others = (torch.randint(11, (rows, 9)) for rows in (1, 4))
    accelerator = Accelerator(cpu=True)
    batches = [{"input_ids": ids, "labels": ids} for ids in (mine, others)]
    together = validate(accelerator, Model(), Batches(batches))
    from_others = torch.stack(sum_nats_correct_and_targets(table[others], others))
    # the name of the module is also that of a function of its package
    module = sys.modules["flame_accel.evaluation.validate"]
    monkeypatch.setattr(module, "all_reduce_sum_over_dp", lambda _, sums: sums + from_others)
    assert validate(accelerator, Model(), Batches(batches[:1])) == pytest.approx(together)
