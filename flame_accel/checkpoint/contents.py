"""The contents of a checkpoint: everything a run needs to resume with bit-identical results.

    step-N/
      config.json, model*.safetensors, tokenizer    a Hugging Face model with the fp32 weights
      state.json                                    step, tokens, tracker ids
      optimizer/*.safetensors                       `<parameter>.<state>`, sharded as in memory
      data.json                                     cursors of all lanes, for any world size
      ranks.json                                    meter states of all data-parallel ranks
      rank-R.json                                   states of a rank's random number generators

A checkpoint with only the model's weights ends with state.json. Tensors are read and written in
`tensor_storage`; `folder` makes a checkpoint atomic, `restore` decides which one to load.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flame_accel.checkpoint.failed_loads import (
    UnloadableCheckpointError,
    describe_unloadable,
    load_or_fail_on_all_ranks,
)
from flame_accel.checkpoint.failed_saves import (
    FailedSaveError,
    check_free_space,
    write_or_fail_on_all_ranks,
)
from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf_model import gather_full_weights_to_main, save_hf_model
from flame_accel.checkpoint.rng_state import get_all_rng_states_as_json, set_all_rng_states
from flame_accel.checkpoint.tensor_storage import (
    load_optimizer_state,
    load_weights,
    optimizer_state_bytes,
    save_optimizer_shards_of_rank,
)
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.checkpoint_files import has_training_state
from flame_accel.config import CheckpointConfig
from flame_accel.data.loading.stream_state import StreamState, merge_rank_states, to_stream_state
from flame_accel.files import write_json_atomically
from flame_accel.io_errors import is_failed_read
from flame_accel.json_text import parse_json_text
from flame_accel.observe import get_logger
from flame_accel.observe.meter import MeterState
from flame_accel.observe.run_folder import package_versions
from flame_accel.parallel import tp_size, unwrap_model

Result = TypeVar("Result")


class RestoredState(NamedTuple):
    """What is restored in addition to model and optimizer; the defaults are a new run's."""

    state: TrainState
    stream_state: StreamState | None = None
    """Cursors of all lanes; None starts at the beginning of the data."""
    meter_states: Sequence[MeterState] = ()
    """Of every data-parallel rank of the run that saved them, by rank."""
    checkpoint: Path | None = None
    """The run's own checkpoint that was loaded."""


class _JsonFiles(NamedTuple):
    """The contents of the JSON files of a full checkpoint."""

    state: TrainState
    stream_state: StreamState | None
    meter_states: Sequence[MeterState]
    rng_states: dict[str, Any] | None
    """Of this rank; None if it did not exist when they were saved."""


def save_checkpoint(
    accelerator: Accelerator,
    folder: CheckpointFolder,
    state: TrainState,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    tokenizer: PreTrainedTokenizerBase,
    stream_state: StreamState,
    meter_state: MeterState,
    weights_only_dtype: torch.dtype | None = None,
) -> Path:
    """Writes the checkpoint of `state.step`. Every rank must call it; returns when it is complete.

    Args:
        accelerator: The run's accelerator.
        folder: The run's checkpoints.
        state: The run's counters.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        tokenizer: Saved next to the weights.
        stream_state: Cursors of this rank's lanes.
        meter_state: Of this rank's meter.
        weights_only_dtype: Saves only the weights, in this dtype; None saves everything.

    Returns:
        Path of the checkpoint.

    Raises:
        FailedSaveError: On every rank: an I/O error on any of them. Nothing is left of it.
    """
    full = weights_only_dtype is None
    weights_dtype = weights_only_dtype or torch.float32
    weights = gather_full_weights_to_main(accelerator, model, weights_dtype)
    inner = unwrap_model(accelerator, model)
    needed_bytes = _bytes_without_duplicates(weights) + (
        optimizer_state_bytes(accelerator, model, optimizer) if full else 0
    )
    # the ranks of a tensor-parallel group are consecutive and have equal states
    rank_states = gather_object([(stream_state, meter_state)])[:: tp_size(accelerator)]

    def write_model() -> None:
        if accelerator.is_main_process:
            temporary = folder.create_temporary_folder(state.step)
            check_free_space(temporary, needed_bytes)
            save_hf_model(inner, weights, tokenizer, temporary, weights_dtype)
            write_json_atomically(temporary / "state.json", asdict(state))

    def write_training_state() -> None:
        temporary = folder.temporary_path(state.step)
        save_optimizer_shards_of_rank(accelerator, temporary, model, optimizer)
        if accelerator.is_main_process:
            merged = merge_rank_states([stream for stream, _ in rank_states])
            write_json_atomically(temporary / "data.json", merged)
            meters = [{"meter": meter} for _, meter in rank_states]
            write_json_atomically(temporary / "ranks.json", meters)
        path = temporary / f"rank-{accelerator.process_index}.json"
        write_json_atomically(path, get_all_rng_states_as_json())

    def complete() -> None:
        if accelerator.is_main_process:
            facts = {
                "step": state.step,
                "tokens": state.tokens,
                "processes": accelerator.num_processes,
                "versions": package_versions(),
            }
            folder.write_manifest_rename_and_prune(state.step, facts)

    checkpoint = folder.checkpoint_path(state.step)
    try:
        parts = (write_model, write_training_state, complete) if full else (write_model, complete)
        for write in parts:
            write_or_fail_on_all_ranks(accelerator, write, checkpoint=checkpoint)
    except FailedSaveError:
        if accelerator.is_main_process:
            folder.delete_temporary_folder_or_warn(state.step)
        raise
    return checkpoint


def weights_only_dtype_if_seed_or_last(
    config: CheckpointConfig, *, is_last_step: bool
) -> torch.dtype | None:
    """The dtype of a checkpoint that contains only weights; None if it contains everything.

    Args:
        config: Options of section checkpoint.
        is_last_step: Whether the checkpoint is of the last step.
    """
    if config.create_seed_checkpoint:
        # everything else is initialised by the run that loads it, for any number of ranks
        return torch.float32
    if config.model_weights_only and is_last_step:
        return getattr(torch, config.export_dtype)
    return None


def _bytes_without_duplicates(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors, of which tied ones share their memory."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors.values()}.values())


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    excluded_parts: Collection[str] = (),
) -> RestoredState:
    """Loads a checkpoint, including random states. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        checkpoint: Path of an intact checkpoint, or of one with only weights and counters.
        model: The model as Accelerate prepared it; its weights are overwritten.
        optimizer: The optimizer as Accelerate prepared it; its state is overwritten.
        excluded_parts: Parts that are not loaded: `optimizer`, `dataloader`, `train_state`.

    Returns:
        The rest of the loaded state.

    Raises:
        UserError: The checkpoint belongs to another model or optimizer, or cannot be read.
        UnloadableCheckpointError: Its contents are not what they must be; on every rank. Model and
            optimizer are then undefined.
    """
    rank = accelerator.process_index
    # everything that a rank reads for itself comes first, and all of them agree on it
    read = load_or_fail_on_all_ranks(checkpoint, "JSON", lambda: _read_json_files(checkpoint, rank))
    load_or_fail_on_all_ranks(
        checkpoint, "the weights", lambda: load_weights(accelerator, model, checkpoint)
    )
    full = has_training_state(checkpoint)
    if full and "optimizer" not in excluded_parts:
        load_or_fail_on_all_ranks(
            checkpoint,
            "the optimizer's state",
            lambda: load_optimizer_state(accelerator, model, optimizer, checkpoint),
        )
    stream_state = None if "dataloader" in excluded_parts else read.stream_state
    if "train_state" in excluded_parts:
        return RestoredState(TrainState(), stream_state)
    if full and read.rng_states is None:
        get_logger().warning(
            "rank %d did not exist when %s was saved: its random number generators start afresh",
            rank,
            checkpoint,
        )
    load_or_fail_on_all_ranks(
        checkpoint,
        f"rank-{rank}.json",
        lambda: set_all_rng_states(read.rng_states) if read.rng_states is not None else None,
    )
    return RestoredState(read.state, stream_state, read.meter_states)


def _read_json_files(checkpoint: Path, rank: int) -> _JsonFiles:
    """Reads the JSON files of a checkpoint.

    Raises:
        UnloadableCheckpointError: Names the file whose contents are not what they must be.
    """

    def read(name: str, convert: Callable[[Any], Result]) -> Result:
        try:
            return convert(parse_json_text((checkpoint / name).read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if is_failed_read(error):
                raise
            raise UnloadableCheckpointError(describe_unloadable(name, error)) from error

    state = read("state.json", lambda content: TrainState(**content))
    if not has_training_state(checkpoint):
        return _JsonFiles(state, None, (), None)
    has_rank = (checkpoint / f"rank-{rank}.json").exists()
    return _JsonFiles(
        state,
        read("data.json", to_stream_state),
        read("ranks.json", lambda content: [each["meter"] for each in content]),
        read(f"rank-{rank}.json", lambda content: dict(content.items())) if has_rank else None,
    )
