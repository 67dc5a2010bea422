"""One optimizer update: micro-batches, clipping, guard against NaN and inf.

Nothing here waits for the device: losses, norms and the guard's decision stay tensors, so that the
host runs ahead of the device. The caller logs, counts and saves. The loss is that of `loss`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from flame_accel.kernels.boundaries_on_host import remember_boundaries
from flame_accel.parallel import (
    UpdateResult,
    average_fsdp2_ignored_gradients,
    clip_gradients_and_get_norm,
    dp_size,
    is_deepspeed,
    read_deepspeed_update_result,
)
from flame_accel.training.loss import (
    compute_unscaled_nats_over_global_targets,
    count_global_targets_or_one,
)
from flame_accel.training.optimizer_in_backward import OptimizerInBackward
from flame_accel.training.pass_graphs import PassGraphs
from flame_accel.training.spike_guard import SpikeDecision, SpikeGuard


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step computed on its way, on the device and without autograd history."""

    loss_sum: Tensor
    """Nats summed over the target tokens of this rank, 0-dimensional."""
    targets: int
    """Number of target tokens of this rank."""
    grad_norm: Tensor
    """L2 norm of the gradient of all ranks before clipping, 0-dimensional."""
    skipped: Tensor
    """1.0 if the update was skipped: that norm was not finite, or it was a spike; 0-dimensional."""
    spike: SpikeDecision | None = None
    """What the guard against spikes says, if there is one."""


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
    graphs: PassGraphs | None = None,
    spike_guard: SpikeGuard | None = None,
) -> StepResult:
    """Takes one optimizer step on this rank's micro-batches; all ranks must call it.

    The loss of the step is the sum of the nats of all target tokens on all ranks divided by their
    number. Accelerate divides by the accumulation and the engines average over ranks, so the loss
    of each micro-batch is scaled up by both.

    Args:
        accelerator: The run's Accelerator, which accumulates as many micro-batches.
        model: The prepared model; called with `input_ids`, `labels` and, if packed, `cu_seqlens`.
        optimizer: The prepared optimizer.
        micro_batches: On the device, each with `num_targets` in addition to the model's inputs.
        lr: Learning rate of this update.
        max_norm: Gradients are clipped to this L2 norm; 0 leaves them alone.
        skip_non_finite: Leave the weights bit-identical if the gradient's norm is not finite.
        constant_targets: Whether every rank has the same number of targets in every step.
        graphs: Runs the passes as CUDA graphs; None runs them without.
        spike_guard: Decides which updates are skipped as spikes; None skips none.
    """
    targets = sum(batch["num_targets"] for batch in micro_batches)
    global_targets = count_global_targets_or_one(
        accelerator, targets, same_on_all_ranks=constant_targets
    )
    scale = dp_size(accelerator) * len(micro_batches)
    loss_sum = torch.zeros((), device=accelerator.device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for batch in micro_batches:
        with accelerator.accumulate(model):
            if graphs is not None:
                loss = graphs.add_gradients_and_get_loss(batch, global_targets)
            else:
                loss = compute_unscaled_nats_over_global_targets(
                    accelerator, model, batch, global_targets
                )
                accelerator.backward(loss * scale)
        loss_sum += loss.detach() * global_targets
    spike: SpikeDecision | None = None

    def decide_spike(grad_norm: Tensor, non_finite: Tensor) -> Tensor:
        nonlocal spike
        assert spike_guard is not None
        spike = spike_guard.decide_and_remember(loss_sum, global_targets, grad_norm, non_finite)
        return spike.skipped

    result = clip_and_update_or_finish_backward_update(
        accelerator,
        model,
        optimizer,
        max_norm=max_norm,
        skip_non_finite=skip_non_finite,
        set_grads_to_none=graphs is None,
        decide_spike=decide_spike if spike_guard is not None else None,
    )
    return StepResult(
        loss_sum=loss_sum,
        targets=targets,
        grad_norm=result.grad_norm.detach(),
        skipped=result.skipped,
        spike=spike,
    )


def clip_and_update_or_finish_backward_update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    *,
    max_norm: float,
    skip_non_finite: bool,
    set_grads_to_none: bool = True,
    decide_spike: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> UpdateResult:
    """Clips and steps after the last backward pass, unless the pass itself has taken the step.

    Arguments as those of `train_step`.
    Without `set_grads_to_none` gradients become zeros and keep their memory, for graphs.
    `decide_spike` gets the norm and whether it is not finite, and returns whether to skip; both are
    1.0 or 0.0.
    """
    if is_deepspeed(accelerator):
        return read_deepspeed_update_result(accelerator, model)
    average_fsdp2_ignored_gradients(accelerator)
    inner = optimizer.optimizer
    if isinstance(inner, OptimizerInBackward):
        return inner.update_remaining_and_reduce_norm()
    grad_norm = clip_gradients_and_get_norm(accelerator, model, max_norm)
    found_inf = (~torch.isfinite(grad_norm)).float() * float(skip_non_finite)
    if decide_spike is not None:
        found_inf = decide_spike(grad_norm, found_inf)
    step_unless_found_inf_and_zero_grad(optimizer, found_inf, set_to_none=set_grads_to_none)
    return UpdateResult(grad_norm, found_inf)


def step_unless_found_inf_and_zero_grad(
    optimizer: AcceleratedOptimizer, found_inf: Tensor, *, set_to_none: bool = True
) -> None:
    """Steps unless `found_inf` is 1.0, and clears the gradients in any case.

    torch's fused optimizers decide by the tensor on the device, as they do for a gradient scaler;
    for the others the host waits for its value.

    Args:
        optimizer: The prepared optimizer.
        found_inf: 0-dimensional, 1.0 or 0.0.
        set_to_none: Free the gradients instead of setting them to zero.
    """
    inner = optimizer.optimizer
    if inner.defaults.get("fused"):
        inner.found_inf = found_inf
        optimizer.step()
    elif not found_inf.item():
        optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)


def batch_to_device_with_host_boundaries(
    batch: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """A micro-batch with its tensors on a device; copies from pinned memory are asynchronous.

    The boundaries of its documents stay known on the host, for kernels that need them there.
    """
    on_device = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    if "cu_seqlens" in batch:
        remember_boundaries(on_device["cu_seqlens"], batch["cu_seqlens"].tolist())
    return on_device
