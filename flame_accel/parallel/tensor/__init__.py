"""Tensor parallelism (TP) by plans of our own: matrices sharded over ranks that read the same rows.

`plans` says what is sharded how, `regions` matches a model with the plans, `apply` does it.
"""

from flame_accel.parallel.tensor.apply import apply_tensor_parallel
from flame_accel.parallel.tensor.regions import check_tensor_parallel_support

__all__ = ["apply_tensor_parallel", "check_tensor_parallel_support"]
