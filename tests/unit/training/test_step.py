"""Laws of the step's loss where a micro-batch, or a whole step, has no target."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, LlamaConfig

from flame_accel import kernels
from flame_accel.models.catalogue import tiny_config
from flame_accel.training.step import compute_loss, count_global_targets


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
    loss = compute_loss(accelerator, model, batch, 7)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_a_step_without_targets_is_divided_by_one():
    accelerator = Accelerator(cpu=True)
    assert [count_global_targets(accelerator, n, constant=False) for n in (0, 5)] == [1, 5]
