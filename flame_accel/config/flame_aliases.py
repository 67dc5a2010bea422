"""Option names that only flame has: aliases of our options, and options without a counterpart.

Aliases are translated in `settings`. The others are known by name so that `unsupported` can refuse
them with a reason. Values are checked like those of our own options.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flame_accel.config.paths import PathKind
from flame_accel.config.schema import Option, options


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """Flame's name for one of our options."""

    option: Option
    target: str
    """The name of our option."""
    convert: Callable[[Any], Any] = lambda value: value
    """From the value of the alias to the value of our option."""


def _alias_of_same_type(name: str, target: str) -> Alias:
    """Another name for an option of ours, with the same values."""
    return Alias(option=replace(options()[target], name=name), target=target)


DECAY_RATIO = Option(name="lr_scheduler.decay_ratio", kind=float, optional=True)
DECAY_TYPE = Option(
    name="lr_scheduler.decay_type", kind=str, default="linear", choices=("linear", "sqrt", "cosine")
)
CONVERTERS = Option(name="model.converters", kind=str, many=True, default=(), choices=("float8",))

_ALIASES = (
    _alias_of_same_type("lr_scheduler.warmup_steps", "training.warmup_steps"),
    _alias_of_same_type("lr_scheduler.lr_min", "optimizer.min_lr_ratio"),
    _alias_of_same_type("checkpoint.last_save_model_weights_only", "checkpoint.model_weights_only"),
    Alias(
        option=Option(
            name="optimizer.implementation", kind=str, choices=("fused", "foreach", "for-loop")
        ),
        target="optimizer.fused",
        convert=lambda implementation: implementation == "fused",
    ),
    Alias(
        option=Option(name="metrics.save_for_all_ranks", kind=bool),
        target="metrics.rank_0_only",
        convert=lambda all_ranks: not all_ranks,
    ),
    Alias(
        option=Option(name="experimental.custom_model_path", kind=str, path=PathKind.ONE),
        target="model.custom",
        convert=lambda path: (path,) if path else (),
    ),
)
ALIASES = {alias.option.name: alias for alias in _ALIASES}

# flame's options without a counterpart; only the default value is accepted
_WITHOUT_COUNTERPART = (
    Option(name="model.name", kind=str, default="fla"),
    Option(name="model.print_after_conversion", kind=bool, default=False),
    Option(name="experimental.pipeline_parallel_split_points", kind=str, many=True, default=()),
    Option(name="experimental.pipeline_parallel_schedule", kind=str, default="1F1B"),
    Option(name="experimental.pipeline_parallel_schedule_csv", kind=str, default=""),
    Option(name="experimental.pipeline_parallel_microbatches", kind=int, optional=True),
    Option(name="experimental.context_parallel_rotate_method", kind=str, default="allgather"),
    Option(name="activation_offload.mode", kind=str, default="none"),
    Option(name="memory_estimation.enabled", kind=bool, default=False),
    Option(name="memory_estimation.disable_fake_mode", kind=bool, default=False),
    Option(name="fault_tolerance.enable", kind=bool, default=False),
    Option(name="fault_tolerance.replica_id", kind=int, default=0),
    Option(name="fault_tolerance.group_size", kind=int, default=0),
    Option(name="fault_tolerance.min_replica_size", kind=int, default=1),
)
FLAME_ONLY = {option.name: option for option in _WITHOUT_COUNTERPART}

FLAME_OPTIONS = {
    option.name: option
    for option in (
        DECAY_RATIO,
        DECAY_TYPE,
        CONVERTERS,
        *(alias.option for alias in _ALIASES),
        *_WITHOUT_COUNTERPART,
    )
}
