"""One optimizer update: schedule, optimizer, and the step with its guard against NaN and inf."""

from flame_accel.training.garbage_collection import GarbageCollection
from flame_accel.training.optimizer import build_optimizer, check_optimizer_support
from flame_accel.training.pass_graphs import PassGraphs, build_pass_graphs
from flame_accel.training.randomness import seed_process_and_set_determinism
from flame_accel.training.schedule import describe_long_warmup, is_due, learning_rate
from flame_accel.training.spike_guard import (
    SpikeGuard,
    build_spike_guard_if_enabled,
    check_spike_guard_support,
)
from flame_accel.training.step import (
    StepResult,
    batch_to_device_with_host_boundaries,
    train_step,
)

__all__ = [
    "GarbageCollection",
    "PassGraphs",
    "SpikeGuard",
    "StepResult",
    "batch_to_device_with_host_boundaries",
    "build_optimizer",
    "build_pass_graphs",
    "build_spike_guard_if_enabled",
    "check_optimizer_support",
    "check_spike_guard_support",
    "describe_long_warmup",
    "is_due",
    "learning_rate",
    "seed_process_and_set_determinism",
    "train_step",
]
