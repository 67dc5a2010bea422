"""Preparing model and optimizer: what Accelerate leaves, what is removed again, what follows."""

from contextlib import nullcontext
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flame_accel.config import Float8Config, TrainingConfig
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel import (
    autocast_unless_fsdp2,
    prepare_transformed_model_and_optimizer,
    unwrap_model,
)
from flame_accel.parallel.prepare import _prepare_tp_model_with_or_without_fsdp2

IDS = torch.arange(12).view(1, 12)


class HookedSGD(torch.optim.SGD):
    """An optimizer that wants to hook its parameters."""

    hooked_for: torch.device | None = None

    def hook_sharded_else_all_parameters(self, device: torch.device) -> None:
        self.hooked_for = device


def test_optimizers_that_hook_parameters_do_so_after_preparing(build_on_cpu):
    model = instantiate_on_default_device(tiny_config("gla"))
    optimizer = HookedSGD(model.parameters(), lr=0.1)
    prepared = prepare_transformed_model_and_optimizer(
        build_on_cpu(), model, optimizer, TrainingConfig(), Float8Config()
    )
    assert optimizer.hooked_for == torch.device("cpu")
    assert prepared.optimizer.optimizer is optimizer


def test_the_wrapper_that_copies_outputs_to_fp32_is_removed(build_on_cpu):
    accelerator = build_on_cpu(ACCELERATE_MIXED_PRECISION="bf16")
    model = instantiate_on_default_device(tiny_config("gla"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared = prepare_transformed_model_and_optimizer(
        accelerator, model, optimizer, TrainingConfig(), Float8Config()
    )
    assert not {"forward", "_original_forward"} & vars(prepared.model).keys()
    with autocast_unless_fsdp2(accelerator):
        assert prepared.model(input_ids=IDS).logits.dtype is torch.bfloat16


def test_a_model_of_one_process_is_not_wrapped(build_on_cpu):
    model: Any = nn.Linear(2, 2)
    assert unwrap_model(build_on_cpu(), model) is model


def test_ddp_is_unwrapped(build_on_cpu, monkeypatch):
    wrapped: Any = object.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = nn.Linear(2, 2)
    assert unwrap_model(build_on_cpu(), wrapped) is wrapped.module


def test_fsdp2_needs_no_autocast(build_on_cpu, monkeypatch):
    accelerator = build_on_cpu(ACCELERATE_MIXED_PRECISION="bf16")
    assert not isinstance(autocast_unless_fsdp2(accelerator), nullcontext)
    monkeypatch.setattr(type(accelerator), "is_fsdp2", True)
    assert isinstance(autocast_unless_fsdp2(accelerator), nullcontext)


def test_tensor_parallel_models_are_known_to_accelerate_and_not_wrapped(build_on_cpu):
    accelerator, model = build_on_cpu(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared = _prepare_tp_model_with_or_without_fsdp2(accelerator, model, optimizer)
    assert prepared.model is model and accelerator._models == [model]
    assert isinstance(prepared.optimizer, AcceleratedOptimizer)
    assert prepared.optimizer.optimizer is optimizer
    # preparing again would wrap them
    assert accelerator.prepare(*prepared) == prepared
