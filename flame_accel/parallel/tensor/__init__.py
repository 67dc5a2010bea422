"""Tensor parallelism by plans of our own: matrices split over peers that read the same rows."""

from flame_accel.parallel.tensor.apply import apply_tensor_parallel
from flame_accel.parallel.tensor.prepare import prepare_split

__all__ = ["apply_tensor_parallel", "prepare_split"]
