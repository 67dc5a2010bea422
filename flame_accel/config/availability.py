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
_OTHER_RUNS = "starting from the weights of another run is"
_LAST_CHECKPOINT = "leaving the optimizer out of the last checkpoint is"
_FLOAT8 = _later("matrix products in 8-bit floats are")
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
    "model.norm_type": _later(
        "choosing another norm is", "Remove the option or use the norm of the model config."
    ),
    "model.name": _never(
        "the architecture is not chosen by name", "Remove the option; model.config names it."
    ),
    "model.converters": _later("converting layers, for example to 8-bit floats, is"),
    "model.print_after_conversion": _later("converting layers is"),
    "profiling.enable_profiling": _later("profiling is"),
    "profiling.enable_memory_snapshot": _later("taking memory snapshots is"),
    "optimizer.name": Refusal(
        reason="the Muon optimizer is not available yet in this version",
        remedy="Use AdamW or Adam.",
        asks=lambda value: value == "Muon",
    ),
    "optimizer.early_step_in_backward": _later("applying the optimizer in the backward pass is"),
    "training.enable_cpu_offload": _later("offloading to CPU memory is"),
    "training.tensor_parallel_degree": _later(
        "tensor parallelism is",
        "Remove the option; training.data_parallel_shard_degree spreads the weights over devices.",
    ),
    "training.disable_loss_parallel": _later("tensor parallelism, which this belongs to, is"),
    "training.fsdp_reshard_after_forward": _later(
        "choosing when gathered weights are freed is", "Remove the option to let the engine choose."
    ),
    "training.compile": _later("compiling the model is"),
    "metrics.rank_0_only": _later("writing the metrics of every rank is"),
    "checkpoint.interval_type": _later(
        "an interval in seconds is", "Remove the option and give checkpoint.interval in steps."
    ),
    "checkpoint.model_weights_only": _later(
        _LAST_CHECKPOINT,
        "Remove the option; the run folder's hf/ holds only the model in any case.",
    ),
    "checkpoint.last_save_model_weights_only": _later(
        _LAST_CHECKPOINT,
        "Remove the option; the run folder's hf/ holds only the model in any case.",
    ),
    "checkpoint.async_mode": _later("writing checkpoints while training goes on is"),
    "checkpoint.initial_load_path": _later(_OTHER_RUNS),
    "checkpoint.initial_load_model_weights_only": _later(_OTHER_RUNS),
    "checkpoint.create_seed_checkpoint": _later("saving a seed checkpoint is"),
    "checkpoint.exclude_from_loading": _later("loading parts of a checkpoint is"),
    "evaluation.dataset": _SEVERAL_DATASETS,
    "activation_checkpoint.mode": _later("recomputing activations is"),
    "activation_offload.mode": _never("moving activations to CPU memory is not supported"),
    "float8.enable_fsdp_float8_all_gather": _FLOAT8,
    "float8.precompute_float8_dynamic_scale_for_fsdp": _FLOAT8,
    "float8.force_recompute_fp8_weight_in_bwd": _FLOAT8,
    "float8.recipe_name": _FLOAT8,
    "comm.train_timeout_seconds": _later(
        "another timeout after the first step is",
        "Remove the option; comm.init_timeout_seconds holds for the whole run.",
    ),
    "comm.trace_buf_size": _later("NCCL's flight recorder is"),
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
