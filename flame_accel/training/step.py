"""One optimizer update: micro-batches, loss over all targets, clipping, non-finite guard.

Nothing here asks the device for a value: losses, norms and the guard's decision stay tensors, so
that the host runs ahead of the device. The caller logs, counts and saves.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from flame_accel.parallel import (
    all_reduce_sum,
    autocast,
    average_ignored_gradients,
    clip_gradients,
    dp_size,
    is_deepspeed,
    read_deepspeed_step,
    unwrap,
)
from flame_accel.training.optimizer_in_backward import OptimizerInBackward


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one update leaves behind, on the device and without history."""

    loss_sum: Tensor
    """Nats summed over the target tokens of this rank, 0-dimensional."""
    targets: int
    """Number of target tokens of this rank."""
    grad_norm: Tensor
    """L2 norm of the gradient of all ranks before clipping, 0-dimensional."""
    skipped: Tensor
    """1.0 if the update was skipped because that norm was not finite, else 0.0; 0-dimensional."""


@functools.cache
def takes_num_items(model_class: type[nn.Module]) -> bool:
    """Whether forward divides a summed loss by `num_items_in_batch`, as fla's models do."""
    parameters = inspect.signature(model_class.forward).parameters
    if "num_items_in_batch" in parameters:
        return True
    has_kwargs = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return has_kwargs and model_class.forward.__module__.startswith("transformers.")


def count_targets(accelerator: Accelerator, local: int, *, constant: bool) -> int | Tensor:
    """Number of target tokens of a step on all ranks; 1 if there are none, since it divides.

    Without communication where every rank has the same number.
    """
    if accelerator.num_processes == 1 or constant:
        return max(1, local * dp_size(accelerator))
    # filled on the device: a copy from the host would wait for it
    total = all_reduce_sum(accelerator, torch.full((), local, device=accelerator.device))
    return total.clamp(min=1)


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    micro_batches: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    max_norm: float,
    skip_non_finite: bool,
    constant_targets: bool,
) -> StepResult:
    """Runs one update on this rank's micro-batches of a step.

    The loss of the step is the sum of the nats of all target tokens on all ranks divided by their
    number. Accelerate divides by the accumulation and the engines average over ranks, so each
    micro-batch's share is scaled up by both.

    Args:
        accelerator: Of the run, with its accumulation set to the number of micro-batches.
        model: Prepared; called with `input_ids`, `labels` and, if packed, `cu_seqlens`.
        optimizer: Prepared.
        micro_batches: On the device, each with `num_targets` beside the model's inputs.
        lr: Learning rate of this update.
        max_norm: Gradients are clipped to this L2 norm; 0 leaves them alone.
        skip_non_finite: Leave the weights bit-identical if the gradient's norm is not finite.
        constant_targets: Every rank has the same number of targets in every step.
    """
    targets = sum(batch["num_targets"] for batch in micro_batches)
    global_targets = count_targets(accelerator, targets, constant=constant_targets)
    scale = dp_size(accelerator) * len(micro_batches)
    loss_sum = torch.zeros((), device=accelerator.device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for batch in micro_batches:
        with accelerator.accumulate(model):
            loss = compute_loss(accelerator, model, batch, global_targets)
            accelerator.backward(loss * scale)
        loss_sum += loss.detach() * global_targets
    grad_norm, skipped = finish_update(
        accelerator, model, optimizer, max_norm=max_norm, skip_non_finite=skip_non_finite
    )
    return StepResult(
        loss_sum=loss_sum, targets=targets, grad_norm=grad_norm.detach(), skipped=skipped
    )


def finish_update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    *,
    max_norm: float,
    skip_non_finite: bool,
) -> tuple[Tensor, Tensor]:
    """Clips, guards and steps after the last backward pass, unless that pass has stepped itself.

    Returns:
        The gradient's norm before clipping, and 1.0 if the update was skipped, else 0.0.
    """
    if is_deepspeed(accelerator):
        return read_deepspeed_step(accelerator, model)
    average_ignored_gradients(accelerator)
    inner = optimizer.optimizer
    if isinstance(inner, OptimizerInBackward):
        return inner.finish_step()
    grad_norm = clip_gradients(accelerator, model, max_norm)
    skipped = (~torch.isfinite(grad_norm)).float() * float(skip_non_finite)
    update(optimizer, skipped)
    return grad_norm, skipped


def compute_loss(
    accelerator: Accelerator,
    model: nn.Module,
    batch: Mapping[str, Any],
    global_targets: int | Tensor,
) -> Tensor:
    """This micro-batch's nats, summed, over the targets of the whole step. 0-dimensional."""
    inputs = {name: value for name, value in batch.items() if name != "num_targets"}
    if takes_num_items(type(unwrap(accelerator, model))):
        with autocast(accelerator):
            return model(**inputs, num_items_in_batch=global_targets).loss
    with autocast(accelerator):
        mean = model(**inputs).loss
    if not batch["num_targets"]:
        # the mean over no targets; its gradients are zeros, and every rank takes part in backward
        mean = mean.nan_to_num()
    return mean * batch["num_targets"] / global_targets


def update(optimizer: AcceleratedOptimizer, skipped: Tensor) -> None:
    """Steps and clears the gradients, unless `skipped` says 1, without the host knowing which.

    torch's fused optimizers take the decision as a device tensor, as they do from a gradient
    scaler; the others need to ask.
    """
    inner = optimizer.optimizer
    if inner.defaults.get("fused"):
        inner.found_inf = skipped
        optimizer.step()
    elif not skipped.item():
        optimizer.step()
    optimizer.zero_grad()


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves the tensors of a micro-batch; from page-locked memory without waiting for the copy."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
