"""One optimizer update: micro-batches, loss over all targets, clipping, guard against NaN and inf.

Nothing here waits for the device: losses, norms and the guard's decision stay tensors, so that the
host runs ahead of the device. The caller logs, counts and saves.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from flame_accel.config import Config, UserError
from flame_accel.kernels import triton_has_device
from flame_accel.kernels.boundaries_on_host import remember_boundaries
from flame_accel.parallel import (
    UpdateResult,
    all_reduce_sum_over_dp,
    autocast_unless_fsdp2,
    average_fsdp2_ignored_gradients,
    clip_gradients_and_get_norm,
    dp_size,
    is_deepspeed,
    read_deepspeed_update_result,
    unwrap_model,
)
from flame_accel.training.optimizer_in_backward import OptimizerInBackward
from flame_accel.training.pass_graphs import PassGraphs
from flame_accel.training.spike_guard import SpikeDecision, SpikeGuard

log = logging.getLogger("flame_accel")

GRAPHED_MODELS = (
    "delta_net", "gated_deltanet", "gla", "kda", "mamba2", "rwkv7", "transformer",
)  # fmt: skip
"""Model types whose passes are graphs unless switched off: those that were measured."""


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


def build_pass_graphs(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    config: Config,
) -> PassGraphs | None:
    """What runs the passes of a run as CUDA graphs, which is logged; None if they are not used.

    Args:
        accelerator: The run's Accelerator.
        model: The prepared model.
        optimizer: The prepared optimizer.
        config: Whether graphs are asked for, and what may be in their way.

    Raises:
        UserError: They are asked for, and this run cannot have them.
    """
    training, asked = config.training, config.training.cuda_graphs
    if asked == "never":
        return None
    reason = _find_reason_against_graphs(accelerator, model, optimizer, config)
    if reason is not None and asked == "always":
        raise UserError(reason, where="training.cuda_graphs", remedy="remove the option")
    untried = training.compile or config.float8.recipe_name is not None
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if reason is not None or (asked == "auto" and (untried or model_type not in GRAPHED_MODELS)):
        return None
    log.info("forward and backward passes: CUDA graphs")
    return PassGraphs(
        accelerator,
        model,
        functools.partial(compute_unscaled_nats_over_global_targets, accelerator, model),
        longest_document=training.context_len or training.seq_len,
        scale=training.gradient_accumulation_steps,
    )


def _find_reason_against_graphs(
    accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer, config: Config
) -> str | None:
    if accelerator.device.type != "cuda" or not triton_has_device():
        return "graphs need a CUDA device and Triton"
    if accelerator.num_processes > 1 or accelerator.is_fsdp2 or is_deepspeed(accelerator):
        return "passes are graphs on one GPU only"
    if config.activation_checkpoint.mode != "none":
        return "activation checkpointing reads the state of random numbers, which a graph cannot"
    if isinstance(optimizer.optimizer, OptimizerInBackward):
        return "the optimizer steps within the backward pass, with another learning rate each time"
    if not accepts_num_items_in_batch(type(model)):
        return f"{type(model).__name__} does not divide its loss by num_items_in_batch"
    return None
