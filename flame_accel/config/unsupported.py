"""Options that are known but not supported: refused with the reason, never ignored.

One table. Any value but the default is refused, unless the entry says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flame_accel.config.schema import Option


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsupported:
    """Why an option is refused, and what to do instead."""

    reason: str
    remedy: str = "Remove the option."
    refuses: Callable[[Any], bool] | None = None
    """Whether a value is refused; None refuses all but the default."""


_SEVERAL_DATASETS = Unsupported(
    reason="validation on several datasets is not supported yet",
    remedy="Name one dataset.",
    refuses=lambda value: value is not None and "," in value,
)
_PIPELINE = Unsupported(
    reason="pipeline parallelism is not supported",
    remedy="Remove the option; training.data_parallel_shard_degree shards the weights over "
    "devices.",
)
_SPLIT_SEQUENCE = Unsupported(
    reason="splitting a sequence over devices would be silently wrong for linear attention: its "
    "state would not be passed from one device to the next",
    remedy="Remove the option; training.data_parallel_shard_degree makes room for long sequences.",
)
_MEMORY = Unsupported(reason="memory estimation is not supported")
_FAULT_TOLERANCE = Unsupported(
    reason="TorchFT is not supported",
    remedy="Remove the option; a run that is started again resumes from its newest checkpoint.",
)

UNSUPPORTED: dict[str, Unsupported] = {
    "model.name": Unsupported(
        reason="the architecture is not chosen by name",
        remedy="Remove the option; model.config names the architecture.",
    ),
    "model.print_after_conversion": Unsupported(
        reason="printing the converted model is not supported",
        remedy="Remove the option; the log says what was converted.",
    ),
    "checkpoint.async_mode": Unsupported(
        reason="writing checkpoints in the background is not supported yet"
    ),
    "evaluation.dataset": _SEVERAL_DATASETS,
    "activation_offload.mode": Unsupported(
        reason="offloading activations to CPU memory is not supported"
    ),
    "experimental.context_parallel_degree": _SPLIT_SEQUENCE,
    "experimental.context_parallel_rotate_method": _SPLIT_SEQUENCE,
    "experimental.pipeline_parallel_degree": _PIPELINE,
    "experimental.pipeline_parallel_split_points": _PIPELINE,
    "experimental.pipeline_parallel_schedule": _PIPELINE,
    "experimental.pipeline_parallel_schedule_csv": _PIPELINE,
    "experimental.pipeline_parallel_microbatches": _PIPELINE,
    "experimental.enable_async_tensor_parallel": Unsupported(
        reason="overlapping the communication of tensor parallelism is not supported"
    ),
    "experimental.enable_compiled_autograd": Unsupported(
        reason="compiling the backward pass is not supported"
    ),
    "memory_estimation.enabled": _MEMORY,
    "memory_estimation.disable_fake_mode": _MEMORY,
    "fault_tolerance.enable": _FAULT_TOLERANCE,
    "fault_tolerance.replica_id": _FAULT_TOLERANCE,
    "fault_tolerance.group_size": _FAULT_TOLERANCE,
    "fault_tolerance.min_replica_size": _FAULT_TOLERANCE,
}


def find_unsupported(option: Option, value: Any) -> Unsupported | None:
    """Why this value of an option is refused, or None if it is supported."""
    entry = UNSUPPORTED.get(option.name)
    if entry is None:
        return None
    refused = value != option.default if entry.refuses is None else entry.refuses(value)
    return entry if refused else None
