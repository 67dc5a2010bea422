"""Hands a tensor-parallel model and its optimizer to Accelerate, whose own way is broken.

`Accelerator.prepare` with a TP mesh imports a name that transformers 5 no longer has (accelerate
1.15.0, accelerator.py:1618); what it would do there, making every parameter a DTensor,
`apply_tensor_parallel` has done.
"""

from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer


def prepare_tensor_parallel(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Prepares a tensor-parallel model and its optimizer; under FSDP2 the model is sharded further.

    Returns:
        The model to call in the step, and the prepared optimizer.
    """
    if accelerator.is_fsdp2:
        # `prepare` without its broken step
        prepared: Any = accelerator._prepare_fsdp2(model, optimizer)
    else:
        accelerator._models.append(model.to(accelerator.device))
        prepared = model, accelerator.prepare_optimizer(optimizer)
    for item in prepared:
        item._is_accelerate_prepared = True
    return prepared
