"""Preparing a tensor-parallel model without Accelerate's own way."""

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from flame_accel.parallel.tensor import prepare_tensor_parallel


def test_model_and_optimizer_are_known_to_accelerate_and_not_wrapped(build_on_cpu):
    accelerator, model = build_on_cpu(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared_model, prepared_optimizer = prepare_tensor_parallel(accelerator, model, optimizer)
    assert prepared_model is model and accelerator._models == [model]
    assert isinstance(prepared_optimizer, AcceleratedOptimizer)
    assert prepared_optimizer.optimizer is optimizer
    # preparing again would wrap them
    assert accelerator.prepare(model, prepared_optimizer) == (model, prepared_optimizer)
