"""Who reads what: data ranks, and the peers of tensor parallelism, which share their rows.

Nothing here communicates; sums over ranks live in `exchange`.
"""

from accelerate import Accelerator


def tensor_ranks(accelerator: Accelerator) -> int:
    """Number of ranks that share each matrix and read the same rows."""
    config = accelerator.parallelism_config
    return 1 if config is None else config.tp_size or 1


def data_ranks(accelerator: Accelerator) -> int:
    """Number of shares in which the rows of a step are dealt out."""
    return accelerator.num_processes // tensor_ranks(accelerator)


def data_rank(accelerator: Accelerator) -> int:
    """Which share of the rows this rank reads; peers are neighbours, so the mesh's last axis."""
    return accelerator.process_index // tensor_ranks(accelerator)
