"""Has Accelerate prepare a model and its optimizer, and checks what came out.

What has to be done to a model before is in `transform`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedModel

from flame_accel.config import Float8Config, TrainingConfig
from flame_accel.parallel.checks import check_initial_weights_equal, check_prepared_parameters
from flame_accel.parallel.deepspeed import is_deepspeed
from flame_accel.parallel.float8 import register_float8_scale_hooks
from flame_accel.parallel.ranks import tp_size
from flame_accel.parallel.resharding import set_reshard_after_forward


@runtime_checkable
class HasBackwardHooks(Protocol):
    """An optimizer that hooks parameters for the backward pass, once they have been prepared."""

    def hook_sharded_else_all_parameters(self, device: torch.device) -> None:
        """Hooks the parameters that the optimizer holds, which preparing may have replaced."""


class Prepared(NamedTuple):
    """A model and an optimizer that Accelerate has prepared."""

    model: torch.nn.Module
    """What to call in the step; wrapped under DDP and DeepSpeed, see `unwrap_model`."""
    optimizer: AcceleratedOptimizer


def prepare_transformed_model_and_optimizer(
    accelerator: Accelerator,
    transformed_model: PreTrainedModel,
    optimizer: Optimizer,
    training: TrainingConfig,
    float8: Float8Config,
) -> Prepared:
    """Has Accelerate prepare model and optimizer, and does what has to follow on any engine.

    All ranks must call it.

    Args:
        accelerator: The run's Accelerator.
        transformed_model: After `apply_float8_tp_cast_compile_and_checkpointing`.
        optimizer: Over the model's parameters.
        training: When FSDP2 frees gathered weights.
        float8: Whether scales of 8-bit gathering are computed in advance.

    Raises:
        RuntimeError: Ranks have built different weights, the optimizer does not hold exactly the
            model's parameters, or weights are not sharded as asked for.
    """
    model = transformed_model
    check_initial_weights_equal(accelerator, model)
    if tp_size(accelerator) > 1:
        prepared, prepared_optimizer = _prepare_tp_model_with_or_without_fsdp2(
            accelerator, model, optimizer
        )
    else:
        prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(prepared_optimizer, AcceleratedOptimizer)
    inner = unwrap_model(accelerator, prepared)
    # accelerate's wrapper of forward copies every output to fp32, logits included: gigabytes in
    # each step. the step opens `autocast_unless_fsdp2` itself instead
    inner.__dict__.pop("forward", None)
    inner.__dict__.pop("_original_forward", None)
    set_reshard_after_forward(accelerator, inner, training.fsdp_reshard_after_forward)
    check_prepared_parameters(accelerator, inner, prepared_optimizer)
    if isinstance(prepared_optimizer.optimizer, HasBackwardHooks):
        prepared_optimizer.optimizer.hook_sharded_else_all_parameters(accelerator.device)
    if float8.precompute_float8_dynamic_scale_for_fsdp:
        register_float8_scale_hooks(prepared, prepared_optimizer)
    return Prepared(prepared, prepared_optimizer)


def _prepare_tp_model_with_or_without_fsdp2(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: Optimizer
) -> Prepared:
    """Has Accelerate prepare a tensor-parallel model, which its `prepare` cannot.

    With a TP mesh that imports a name that transformers 5 no longer has (accelerate 1.15.0,
    accelerator.py:1618); what it would do there, making every parameter a DTensor,
    `apply_tensor_parallel` has done. Under FSDP2 the model is sharded further.
    """
    if accelerator.is_fsdp2:
        prepared: Any = accelerator._prepare_fsdp2(model, optimizer)
    else:
        accelerator._models.append(model.to(accelerator.device))
        prepared = model, accelerator.prepare_optimizer(optimizer)
    for item in prepared:
        item._is_accelerate_prepared = True
    return Prepared(*prepared)


def unwrap_model(accelerator: Accelerator, model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, without the wrapper of DDP or DeepSpeed."""
    # accelerate's own function would import deepspeed in every run, for a second and a warning
    wrapped = isinstance(model, DistributedDataParallel) or (
        is_deepspeed(accelerator) and not isinstance(model, PreTrainedModel)
    )
    inner: Any = model.module if wrapped else model
    return inner


def autocast_unless_fsdp2(accelerator: Accelerator) -> AbstractContextManager[None]:
    """The autocast context of a forward pass; FSDP2 casts parameters itself and needs none."""
    if accelerator.is_fsdp2:
        return nullcontext()
    return accelerator.autocast()
