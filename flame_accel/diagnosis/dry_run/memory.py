"""What a device holds during a run, and the largest micro-batch that fits.

A rehearsed pass gives weights, gradients and activations; optimizer states, the CUDA context and
the shares of a sharded run are added here. DeepSpeed and tensor parallelism are not estimated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from flame_accel.diagnosis.dry_run.rehearsal import PassMemory
from flame_accel.parallel.topology import Topology

CONTEXT_BYTES = 2**30
"""The CUDA context, kernels, and workspaces of libraries, which PyTorch does not count."""
USABLE_SHARE = 0.95
"""Of a device's memory; free memory in too small pieces is the rest."""
BF16_BYTES, FP32_BYTES = 2, 4
MOST_ESTIMATES = 5
GATHERED_BLOCKS = 2
"""Blocks whose weights FSDP2 has gathered at a time: that of the pass, and the next one."""


class DeviceMemory(NamedTuple):
    """Bytes on one device where its memory is fullest."""

    weights: int
    """fp32, the masters."""
    optimizer: int
    activations: int
    """Kept from the forward to the backward pass, bf16 copies of weights included."""
    loss: int
    """Logits and their gradients while the loss is computed, above the activations."""
    gradients_and_temporaries: int
    """All else at that moment."""
    context: int
    """Not counted by PyTorch."""

    @property
    def allocated(self) -> int:
        """As `torch.cuda.max_memory_allocated` counts it."""
        return sum(self) - self.context

    @property
    def total(self) -> int:
        """What the device has to have."""
        return sum(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Numbers of parameters."""

    total: int
    optimizer_states: int
    """Numbers in the optimizer's states."""
    largest_block: int


def why_memory_is_unknown(topology: Topology, kernels: str) -> str:
    """Why there is no estimate; empty where there is.

    Args:
        topology: How the run is distributed.
        kernels: `model.kernels`.
    """
    if kernels == "torch":
        return "kernels in PyTorch are not estimated"
    if topology.engine == "deepspeed":
        return "DeepSpeed's buffers are not estimated"
    if topology.engine == "tensor" or topology.degrees.tp > 1:
        return "tensor parallelism is not estimated"
    return ""


def add_states_and_shard(memory: PassMemory, sizes: ModelSizes, topology: Topology) -> DeviceMemory:
    """What one device holds.

    Args:
        memory: Of a pass of its micro-batch, with all weights.
        sizes: Of the model.
        topology: How the run is distributed; not one that `why_memory_is_unknown`.
    """
    shards = topology.degrees.dp_shard if topology.engine == "fsdp2" else 1
    states = FP32_BYTES * sizes.optimizer_states
    # gradients are whole at the end of the pass, when activations are gone
    peak = max(memory.peak, memory.weights + memory.gradients)
    rest = peak - memory.weights - memory.kept - memory.loss
    kept, weights = memory.kept, memory.weights
    if topology.engine == "fsdp2":
        # weights are gathered in bf16 and freed again, gradients of a block reduced at once
        block = sizes.largest_block
        kept = max(kept - BF16_BYTES * sizes.total, 0)
        rest += block * (GATHERED_BLOCKS * BF16_BYTES + BF16_BYTES + FP32_BYTES)
        rest += memory.gradients // shards
        weights, states = weights // shards, states // shards
        if topology.offload:
            weights = states = 0
    return DeviceMemory(weights, states, kept, memory.loss, rest, CONTEXT_BYTES)


def find_largest_micro_batch(
    total_bytes: Callable[[int], int], device_bytes: int, *, guess: int, most_rows: int
) -> int:
    """The largest number of rows whose estimate is within the usable share of a device.

    Memory grows by nearly the same for each row, so that few estimates are made.

    Args:
        total_bytes: Of a micro-batch with a given number of rows.
        device_bytes: Memory of the device.
        guess: Where to begin, at least 1.
        most_rows: Of more no estimate is made: from there on a line is drawn.

    Returns:
        Rows; 0 if a single one does not fit.
    """
    limit = USABLE_SHARE * device_bytes
    rows, total = 1, total_bytes(1)
    if total > limit:
        return 0
    following = max(min(guess, most_rows), 2)
    for _ in range(MOST_ESTIMATES):
        earlier, rows = rows, following
        before, total = total, total_bytes(rows)
        per_row = max((total - before) / (rows - earlier), 1.0)
        following = max(rows + math.floor((limit - total) / per_row), 1)
        if following == rows or following > most_rows:
            return following
    return min(rows, following)
