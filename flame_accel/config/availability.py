"""Options that are known but not supported, or not yet: refused with a reason, never ignored.

One table. An option is refused when its value asks for something, which is any value but its
default unless the entry says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flame_accel.config.schema import Option


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why an option is refused, and what to do instead."""

    reason: str
    remedy: str
    asks: Callable[[Any], bool] | None = None
    """Which values ask for it; None: all but the default."""


def _later(what: str, remedy: str = "Remove the option.") -> Refusal:
    return Refusal(reason=f"{what} not available yet in this version", remedy=remedy)


def _never(what: str, remedy: str = "Remove the option.") -> Refusal:
    return Refusal(reason=what, remedy=remedy)


_SEVERAL_DATASETS = Refusal(
    reason="an evaluation on several datasets is not available yet in this version",
    remedy="Name one dataset.",
    asks=lambda value: value is not None and "," in value,
)
_PIPELINE = _never(
    "pipeline parallelism is not supported",
    "Remove the option; training.data_parallel_shard_degree spreads the weights over devices.",
)
_SPLIT_SEQUENCE = _never(
    "splitting a sequence over devices would be silently wrong for linear attention,"
    " whose state would not cross from one device to the next",
    "Remove the option; training.data_parallel_shard_degree makes room for long sequences.",
)
_MEMORY = _never("memory estimation is not supported")
_FAULT_TOLERANCE = _never(
    "TorchFT is not supported",
    "Remove the option; a run that is started again goes on from its newest checkpoint.",
)

REFUSALS: dict[str, Refusal] = {
    "model.name": _never(
        "the architecture is not chosen by name", "Remove the option; model.config names it."
    ),
    "model.print_after_conversion": _never(
        "the converted model is not printed", "Remove the option; the log says what was converted."
    ),
    "checkpoint.async_mode": _later("writing checkpoints while training goes on is"),
    "evaluation.dataset": _SEVERAL_DATASETS,
    "activation_offload.mode": _never("moving activations to CPU memory is not supported"),
    "experimental.context_parallel_degree": _SPLIT_SEQUENCE,
    "experimental.context_parallel_rotate_method": _SPLIT_SEQUENCE,
    "experimental.pipeline_parallel_degree": _PIPELINE,
    "experimental.pipeline_parallel_split_points": _PIPELINE,
    "experimental.pipeline_parallel_schedule": _PIPELINE,
    "experimental.pipeline_parallel_schedule_csv": _PIPELINE,
    "experimental.pipeline_parallel_microbatches": _PIPELINE,
    "experimental.enable_async_tensor_parallel": _never(
        "overlapping the communication of tensor parallelism is not supported"
    ),
    "experimental.enable_compiled_autograd": _never("compiling the backward pass is not supported"),
    "memory_estimation.enabled": _MEMORY,
    "memory_estimation.disable_fake_mode": _MEMORY,
    "fault_tolerance.enable": _FAULT_TOLERANCE,
    "fault_tolerance.replica_id": _FAULT_TOLERANCE,
    "fault_tolerance.group_size": _FAULT_TOLERANCE,
    "fault_tolerance.min_replica_size": _FAULT_TOLERANCE,
}


def refusal(option: Option, value: Any) -> Refusal | None:
    """Why a value of an option is refused, or None."""
    found = REFUSALS.get(option.name)
    if found is None:
        return None
    asked = value != option.default if found.asks is None else found.asks(value)
    return found if asked else None
