"""The one place that builds an Accelerator and prepares a model with it, and checks both."""

from flame_accel.parallel.accelerator import (
    autocast,
    build_accelerator,
    describe_topology,
    prepare,
)
from flame_accel.parallel.exchange import gather_over_ranks, sum_dtype, sum_over_ranks

__all__ = [
    "autocast",
    "build_accelerator",
    "describe_topology",
    "gather_over_ranks",
    "prepare",
    "sum_dtype",
    "sum_over_ranks",
]
