"""What makes a run repeatable: the seeds of a process and torch's deterministic algorithms.

Random states in checkpoints live in `training/rng_state`; weights and data order have seeds of
their own, independent of these.
"""

import os

from accelerate.utils import set_seed

from flame_accel.config import TrainingConfig


def seed_process_and_set_determinism(training: TrainingConfig) -> None:
    """Seeds Python, NumPy and torch, differently on each rank, so that dropout differs as well."""
    if training.deterministic:
        # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_seed(training.seed, device_specific=True, deterministic=training.deterministic)
