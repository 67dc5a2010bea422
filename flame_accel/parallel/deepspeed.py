"""What a run asks of DeepSpeed while it trains: its parameters, its own step, its name.

Its configuration is built in `deepspeed_config`; how its shards become whole tensors is in
`checkpoint.deepspeed_zero`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn

from flame_accel.parallel.gradients import UpdateResult


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the model; its backward pass then takes the optimizer's step."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def iterate_model_parameters_under_zero(optimizer: AcceleratedOptimizer) -> Iterator[nn.Parameter]:
    """The model's parameters of which ZeRO's optimizer updates slices."""
    zero: Any = optimizer.optimizer
    for group in zero.fp16_groups if hasattr(zero, "fp16_groups") else zero.bit16_groups:
        yield from group


def read_deepspeed_update_result(accelerator: Accelerator, model: nn.Module) -> UpdateResult:
    """What the optimizer step inside the last `accelerator.backward` did, on the device.

    Args:
        accelerator: The run's Accelerator, under DeepSpeed.
        model: The prepared model, which is DeepSpeed's engine.
    """
    engine: Any = model
    norm, device = engine.get_global_grad_norm(), accelerator.device
    if not isinstance(norm, Tensor):
        # filled on the device: a copy from the host would wait for it
        norm = torch.full((), norm, device=device)
    skipped = torch.full((), float(engine.optimizer.overflow), device=device)
    return UpdateResult(norm.to(device, torch.float32, non_blocking=True), skipped)


def describe_zero_stage_and_offload(accelerator: Accelerator) -> str:
    """The ZeRO stage and what it offloads, in words."""
    plugin: Any = accelerator.state.deepspeed_plugin
    zero = plugin.deepspeed_config["zero_optimization"]
    parts = {"offload_optimizer": "optimizer", "offload_param": "weights"}
    offloaded = [part for key, part in parts.items() if key in zero]
    suffix = f" with {' and '.join(offloaded)} in CPU memory" if offloaded else ""
    return f"ZeRO-{zero['stage']}{suffix}"
