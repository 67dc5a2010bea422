"""Which ranks read the same rows: data-parallel (DP) and tensor-parallel (TP) sizes and groups.

The ranks of a TP group are neighbors; they share every matrix and read the same rows. Nothing here
communicates; sums over ranks live in `collectives`.
"""

from typing import Any

from accelerate import Accelerator
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from flame_accel.config import TrainingConfig


def tp_size(accelerator: Accelerator) -> int:
    """Number of ranks that share each matrix and read the same rows; 1 without TP."""
    config = accelerator.parallelism_config
    return 1 if config is None else config.tp_size or 1


def dp_size(accelerator: Accelerator) -> int:
    """Number of ranks, or groups of TP ranks, that read rows of their own."""
    return accelerator.num_processes // tp_size(accelerator)


def dp_rank(accelerator: Accelerator) -> int:
    """Which of the `dp_size` parts of the rows this rank reads; TP ranks read the same one."""
    # TP is the last dimension of the mesh, so that its ranks are neighbours
    return accelerator.process_index // tp_size(accelerator)


def tp_mesh(accelerator: Accelerator) -> DeviceMesh:
    """The one-dimensional mesh of this rank's TP group; the run must have tensor parallelism."""
    mesh: Any = accelerator.torch_device_mesh
    return mesh["tp"]


def dp_group(accelerator: Accelerator) -> ProcessGroup | None:
    """The ranks with which this one averages gradients; None stands for all ranks of the run."""
    mesh: Any = accelerator.torch_device_mesh
    return None if mesh is None else mesh["dp"].get_group()


def tokens_per_step(training: TrainingConfig, accelerator: Accelerator) -> int:
    """Number of tokens that an optimizer update reads, over all ranks and micro-batches."""
    rows = training.batch_size * training.gradient_accumulation_steps * dp_size(accelerator)
    return rows * training.seq_len
