"""The loss of a step: over all its targets, however many a rank or a micro-batch has of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from flame_accel import kernels
from flame_accel.models.catalogue import tiny_config
from flame_accel.training.loss import (
    accepts_num_items_in_batch,
    compute_unscaled_nats_over_global_targets,
    count_global_targets_or_one,
)


def build(kind: str) -> Any:
    kernels.install()
    torch.manual_seed(0)
    config = (
        tiny_config("gla")
        if kind == "takes the number of targets"
        else LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["takes the number of targets", "takes the mean"])
def test_a_micro_batch_without_targets_adds_nothing(kind: str):
    accelerator, model = Accelerator(cpu=True), build(kind)
    ids = torch.arange(12).view(1, 12)
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100), "num_targets": 0}
    loss = compute_unscaled_nats_over_global_targets(accelerator, model, batch, 7)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_a_step_without_targets_is_divided_by_one():
    accelerator = Accelerator(cpu=True)
    assert [
        count_global_targets_or_one(accelerator, n, same_on_all_ranks=False) for n in (0, 5)
    ] == [1, 5]


@pytest.mark.parametrize(("rank_count", "tp"), [(4, 1), (4, 2)])
def test_a_constant_number_of_targets_counts_once_per_data_rank(rank_count: int, tp: int):
    parallelism = SimpleNamespace(tp_size=tp)
    accelerator: Any = SimpleNamespace(num_processes=rank_count, parallelism_config=parallelism)
    assert (
        count_global_targets_or_one(accelerator, 5, same_on_all_ranks=True) == 5 * rank_count // tp
    )


def test_models_that_divide_by_the_number_of_targets_are_recognized():
    model = build("takes the number of targets")
    assert accepts_num_items_in_batch(type(model))
    assert accepts_num_items_in_batch(type(build("takes the mean")))
    assert not accepts_num_items_in_batch(nn.Linear)
