"""Tensor parallelism by plans of our own: matrices split over peers that read the same rows."""

from flame_accel.parallel.tensor.prepare import prepare_split
from flame_accel.parallel.tensor.split import split_model

__all__ = ["prepare_split", "split_model"]
