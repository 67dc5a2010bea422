"""The state of a run at one step, on the CPU, and the checkpoint that is written from it.

What a checkpoint consists of is told in `contents`. A snapshot is taken by the thread that trains,
on all ranks together, and is then written by any thread: nothing of it changes any more, if its
tensors are copies, and writing uses no device. `saver` decides which thread writes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flame_accel.checkpoint.failed_saves import (
    FailedSaveError,
    check_free_space,
    write_or_fail_on_all_ranks,
)
from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf_model import gather_full_weights_to_main, save_hf_model
from flame_accel.checkpoint.optimizer_shards import (
    OptimizerShard,
    copy_optimizer_shard_of_rank,
    write_optimizer_shard,
)
from flame_accel.checkpoint.tensor_storage import optimizer_state_bytes
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.data.loading.stream_state import StreamState, merge_rank_states
from flame_accel.files import format_json, write_text_atomically
from flame_accel.observe.environment import package_versions
from flame_accel.observe.meter import MeterState
from flame_accel.parallel import HostGroup, tp_size, unwrap_model
from flame_accel.training.rng_state import get_all_rng_states_as_json


class TrainingState(NamedTuple):
    """What a checkpoint that can be resumed has besides the model, on this rank."""

    optimizer_shard: OptimizerShard | None
    """None if other ranks write the whole state of the optimizer."""
    json_files: dict[str, str]
    """By name."""


class Snapshot(NamedTuple):
    """What this rank writes of one checkpoint; the model is the main process's."""

    step: int
    model: PreTrainedModel
    """For its config; the weights are not read from it."""
    tokenizer: PreTrainedTokenizerBase
    weights: dict[str, Tensor]
    """All by name, on the CPU; empty on other ranks. Writing empties it."""
    weights_dtype: torch.dtype
    state_json: str
    training_state: TrainingState | None
    """None in a checkpoint with only weights."""
    run_facts: Mapping[str, object]
    """What the manifest says besides the files and versions."""
    needed_bytes: int
    """Of the tensors of all ranks."""


def take_snapshot(
    accelerator: Accelerator,
    state: TrainState,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    tokenizer: PreTrainedTokenizerBase,
    stream_state: StreamState,
    meter_state: MeterState,
    weights_only_dtype: torch.dtype | None = None,
    to_cpu: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> Snapshot:
    """Takes down what the checkpoint of `state.step` contains. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        state: The run's counters.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        tokenizer: Saved next to the weights.
        stream_state: Cursors of this rank's lanes.
        meter_state: Of this rank's meter.
        weights_only_dtype: Takes only the weights, in this dtype; None takes everything.
        to_cpu: Copies a tensor to the CPU, or begins to. With the default the tensors of a model
            that is on the CPU are those that it trains, so that training must wait.
    """
    dtype = weights_only_dtype or torch.float32
    weights = gather_full_weights_to_main(accelerator, model, dtype, to_cpu=to_cpu)
    # tied weights share their memory
    needed_bytes = sum({tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}.values())
    training_state = None
    if weights_only_dtype is None:
        needed_bytes += optimizer_state_bytes(accelerator, model, optimizer)
        training_state = TrainingState(
            copy_optimizer_shard_of_rank(accelerator, model, optimizer, to_cpu=to_cpu),
            _format_json_files_of_rank(accelerator, stream_state, meter_state),
        )
    return Snapshot(
        step=state.step,
        model=unwrap_model(accelerator, model),
        tokenizer=tokenizer,
        weights=weights,
        weights_dtype=dtype,
        state_json=format_json(asdict(state)),
        training_state=training_state,
        run_facts={
            "step": state.step,
            "tokens": state.tokens,
            "processes": accelerator.num_processes,
        },
        needed_bytes=needed_bytes,
    )


def _format_json_files_of_rank(
    accelerator: Accelerator, stream_state: StreamState, meter_state: MeterState
) -> dict[str, str]:
    """Texts, which do not change while training goes on."""
    # the ranks of a tensor-parallel group are consecutive and have equal states
    rank_states = gather_object([(stream_state, meter_state)])[:: tp_size(accelerator)]
    contents: dict[str, object] = {
        f"rank-{accelerator.process_index}.json": get_all_rng_states_as_json()
    }
    if accelerator.is_main_process:
        contents["data.json"] = merge_rank_states([stream for stream, _ in rank_states])
        contents["ranks.json"] = [{"meter": meter} for _, meter in rank_states]
    return {name: format_json(content) for name, content in contents.items()}


def write_snapshot(
    snapshot: Snapshot, folder: CheckpointFolder, ranks: HostGroup, *, is_main_process: bool
) -> Path:
    """Writes a checkpoint. Every rank must call it; returns when it is complete. Uses no device.

    Args:
        snapshot: Of this rank.
        folder: The run's checkpoints.
        ranks: All ranks; nobody else may use the group meanwhile.
        is_main_process: Whether this rank writes the model and completes the checkpoint.

    Returns:
        Path of the checkpoint.

    Raises:
        FailedSaveError: On every rank: an I/O error on any of them. Nothing is left of it.
    """
    step, training_state = snapshot.step, snapshot.training_state
    temporary = folder.temporary_path(step)

    def write_model() -> None:
        if is_main_process:
            folder.create_temporary_folder(step)
            check_free_space(temporary, snapshot.needed_bytes)
            save_hf_model(
                snapshot.model,
                snapshot.weights,
                snapshot.tokenizer,
                temporary,
                snapshot.weights_dtype,
            )
            write_text_atomically(temporary / "state.json", snapshot.state_json)

    def write_training_state() -> None:
        if training_state is None:
            return
        if training_state.optimizer_shard is not None:
            write_optimizer_shard(training_state.optimizer_shard, temporary / "optimizer")
        for name, text in training_state.json_files.items():
            write_text_atomically(temporary / name, text)

    def complete() -> None:
        if is_main_process:
            facts = {**snapshot.run_facts, "versions": package_versions()}
            folder.write_manifest_rename_and_prune(step, facts)

    checkpoint = folder.checkpoint_path(step)
    try:
        for write in (write_model, write_training_state, complete):
            write_or_fail_on_all_ranks(ranks, write, checkpoint=checkpoint)
    except FailedSaveError:
        if is_main_process:
            folder.delete_temporary_folder_or_warn(step)
        raise
    return checkpoint
