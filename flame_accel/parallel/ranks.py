"""Who reads what: data ranks, and the peers of tensor parallelism, which share their rows.

Nothing here communicates; sums over ranks live in `collectives`.
"""

from accelerate import Accelerator

from flame_accel.config import TrainingConfig


def tp_size(accelerator: Accelerator) -> int:
    """Number of ranks that share each matrix and read the same rows."""
    config = accelerator.parallelism_config
    return 1 if config is None else config.tp_size or 1


def dp_size(accelerator: Accelerator) -> int:
    """Number of shares in which the rows of a step are dealt out."""
    return accelerator.num_processes // tp_size(accelerator)


def dp_rank(accelerator: Accelerator) -> int:
    """Which share of the rows this rank reads; peers are neighbours, so the mesh's last axis."""
    return accelerator.process_index // tp_size(accelerator)


def tokens_per_step(training: TrainingConfig, accelerator: Accelerator) -> int:
    """Number of tokens that an optimizer update reads, over all ranks and micro-batches."""
    rows = training.batch_size * training.gradient_accumulation_steps * dp_size(accelerator)
    return rows * training.seq_len
