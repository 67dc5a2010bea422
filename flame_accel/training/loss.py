"""The loss of a micro-batch, as its part of the loss over all targets of the step.

Padding and documents' first tokens are no targets, so that ranks and micro-batches have different
numbers of them: each is divided by the number of all. What is summed, in one chunk of logits after
the other, is the work of `kernels`.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flame_accel.parallel import (
    all_reduce_sum_over_dp,
    autocast_unless_fsdp2,
    dp_size,
    unwrap_model,
)


@functools.cache
def accepts_num_items_in_batch(model_class: type[nn.Module]) -> bool:
    """Whether forward divides a summed loss by `num_items_in_batch`, as fla's models do."""
    parameters = inspect.signature(model_class.forward).parameters
    if "num_items_in_batch" in parameters:
        return True
    has_kwargs = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return has_kwargs and model_class.forward.__module__.startswith("transformers.")


def count_global_targets_or_one(
    accelerator: Accelerator, local_targets: int, *, same_on_all_ranks: bool
) -> int | Tensor:
    """Number of target tokens of a step on all ranks; 1 if there are none, since it is a divisor.

    Args:
        accelerator: The run's Accelerator.
        local_targets: Number of target tokens of this rank.
        same_on_all_ranks: Whether every rank has the same number, which saves an all-reduce.
    """
    if accelerator.num_processes == 1 or same_on_all_ranks:
        return max(1, local_targets * dp_size(accelerator))
    # filled on the device: a copy from the host would wait for it
    local = torch.full((), local_targets, device=accelerator.device)
    total = all_reduce_sum_over_dp(accelerator, local)
    return total.clamp(min=1)


def compute_unscaled_nats_over_global_targets(
    accelerator: Accelerator,
    model: nn.Module,
    micro_batch: Mapping[str, Any],
    global_targets: int | Tensor,
) -> Tensor:
    """The nats of a micro-batch divided by the number of targets of the whole step, 0-dimensional.

    Args:
        accelerator: The run's Accelerator.
        model: The prepared model.
        micro_batch: On the device, with `num_targets` in addition to the model's inputs.
        global_targets: Number of target tokens of the step on all ranks.
    """
    inputs = {name: value for name, value in micro_batch.items() if name != "num_targets"}
    if accepts_num_items_in_batch(type(unwrap_model(accelerator, model))):
        with autocast_unless_fsdp2(accelerator):
            return model(**inputs, num_items_in_batch=global_targets).loss
    with autocast_unless_fsdp2(accelerator):
        mean = model(**inputs).loss
    if not micro_batch["num_targets"]:
        # a mean over no targets; its gradients are zeros, and every rank takes part in backward
        mean = mean.nan_to_num()
    return mean * micro_batch["num_targets"] / global_targets
