"""Preparing model and optimizer: what Accelerate leaves, what is removed again, what follows."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flame_accel.config import Float8Config, TrainingConfig
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate
from flame_accel.parallel import autocast, prepare, unwrap

IDS = torch.arange(12).view(1, 12)


class HookedSGD(torch.optim.SGD):
    """An optimizer that wants to hook its parameters."""

    hooked_for: torch.device | None = None

    def register_backward_hooks(self, device: torch.device) -> None:
        self.hooked_for = device


def test_optimizers_that_hook_parameters_do_so_after_preparing(build_on_cpu):
    model = instantiate(tiny_config("gla"))
    optimizer = HookedSGD(model.parameters(), lr=0.1)
    prepared = prepare(build_on_cpu(), model, optimizer, TrainingConfig(), Float8Config())
    assert optimizer.hooked_for == torch.device("cpu")
    assert prepared.optimizer.optimizer is optimizer


def test_the_wrapper_that_copies_outputs_to_fp32_is_removed(build_on_cpu):
    accelerator = build_on_cpu(ACCELERATE_MIXED_PRECISION="bf16")
    model = instantiate(tiny_config("gla"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared = prepare(accelerator, model, optimizer, TrainingConfig(), Float8Config())
    assert not {"forward", "_original_forward"} & vars(prepared.model).keys()
    with autocast(accelerator):
        assert prepared.model(input_ids=IDS).logits.dtype is torch.bfloat16


def test_a_model_of_one_process_is_not_wrapped(build_on_cpu):
    model: Any = nn.Linear(2, 2)
    assert unwrap(build_on_cpu(), model) is model


def test_ddp_is_unwrapped(build_on_cpu, monkeypatch):
    wrapped: Any = object.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = nn.Linear(2, 2)
    assert unwrap(build_on_cpu(), wrapped) is wrapped.module


def test_fsdp2_needs_no_autocast(build_on_cpu, monkeypatch):
    accelerator = build_on_cpu(ACCELERATE_MIXED_PRECISION="bf16")
    assert not isinstance(autocast(accelerator), nullcontext)
    monkeypatch.setattr(type(accelerator), "is_fsdp2", True)
    assert isinstance(autocast(accelerator), nullcontext)
