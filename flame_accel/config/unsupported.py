"""Options that are known but not supported: refused with the reason, never ignored.

One table. Any value but the default is refused, unless the entry says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flame_accel.config.flame_aliases import FLAME_ONLY
from flame_accel.config.schema import Option, options


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsupported:
    """Why an option is refused, and what to do instead."""

    reason: str
    remedy: str = "Remove the option."
    refuses: Callable[[Any], bool] | None = None
    """Whether a value is refused; None refuses all but the default."""


_BY_PREFIX = {
    "model.name": Unsupported(
        reason="the architecture is not chosen by name",
        remedy="Remove the option; model.config names the architecture.",
    ),
    "model.print_after_conversion": Unsupported(
        reason="printing the converted model is not supported",
        remedy="Remove the option; the log says what was converted.",
    ),
    "evaluation.dataset": Unsupported(
        reason="it names one dataset",
        remedy="Name one dataset, and the others in evaluation.sets.",
        refuses=lambda value: value is not None and "," in value,
    ),
    "activation_offload.mode": Unsupported(
        reason="offloading activations to CPU memory is not supported"
    ),
    "experimental.context_parallel_": Unsupported(
        reason="splitting a sequence over devices would be silently wrong for linear attention: "
        "its state would not be passed from one device to the next",
        remedy="Remove the option; training.data_parallel_shard_degree makes room for long "
        "sequences.",
    ),
    "experimental.pipeline_parallel_": Unsupported(
        reason="pipeline parallelism is not supported",
        remedy="Remove the option; training.data_parallel_shard_degree shards the weights over "
        "devices.",
    ),
    "experimental.enable_async_tensor_parallel": Unsupported(
        reason="overlapping the communication of tensor parallelism is not supported"
    ),
    "experimental.enable_compiled_autograd": Unsupported(
        reason="compiling the backward pass is not supported"
    ),
    "memory_estimation.": Unsupported(reason="memory estimation is not supported"),
    "fault_tolerance.": Unsupported(
        reason="TorchFT is not supported",
        remedy="Remove the option; a run that is started again resumes from its newest checkpoint.",
    ),
}
# a prefix that ends in a letter is the whole name of an option
UNSUPPORTED = {
    name: entry
    for name in (*options(), *FLAME_ONLY)
    for prefix, entry in _BY_PREFIX.items()
    if name == prefix or (prefix[-1] in "._" and name.startswith(prefix))
}
"""Name of an option, ours or flame's, with values that are refused -> why."""


def find_unsupported(option: Option, value: Any) -> Unsupported | None:
    """Why this value of an option is refused, or None if it is supported."""
    entry = UNSUPPORTED.get(option.name)
    if entry is None:
        return None
    refused = value != option.default if entry.refuses is None else entry.refuses(value)
    return entry if refused else None
