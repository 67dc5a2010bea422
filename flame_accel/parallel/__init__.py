"""The one place that builds an Accelerator, prepares model and optimizer with it, and checks what came of it."""

from flame_accel.parallel.accelerator import (
    autocast,
    build_accelerator,
    describe_topology,
    prepare,
)

__all__ = ["autocast", "build_accelerator", "describe_topology", "prepare"]
