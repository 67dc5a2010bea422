"""The contents of a checkpoint: everything a run needs to resume with bit-identical results.

    step-N/
      config.json, model*.safetensors, tokenizer    a Hugging Face model with the fp32 weights
      state.json                                    step, tokens
      optimizer/*.safetensors                       `<parameter>.<state>`, sharded as in memory
      data.json                                     cursors of all lanes, for any world size
      ranks.json                                    meter states of all data-parallel ranks
      rank-R.json                                   states of a rank's random number generators

A checkpoint with only the model's weights ends with state.json. This module loads one; `snapshot`
writes it. Tensors are read and written in `tensor_storage`; `folder` makes a checkpoint atomic,
`restore` decides which one to load.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from flame_accel.checkpoint.failed_loads import (
    UnloadableCheckpointError,
    describe_unloadable,
    load_or_fail_on_all_ranks,
)
from flame_accel.checkpoint.tensor_storage import (
    load_optimizer_state,
    load_weights,
)
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.checkpoint_files import has_training_state
from flame_accel.config import CheckpointConfig
from flame_accel.data.loading.stream_state import StreamState, to_stream_state
from flame_accel.io_errors import is_failed_read
from flame_accel.json_text import parse_json_text
from flame_accel.observe import get_logger
from flame_accel.observe.meter import MeterState
from flame_accel.training.rng_state import set_all_rng_states

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


def _to_train_state(stored: Mapping[str, Any]) -> TrainState:
    # which older versions wrote; trackers.json of the run folder has them now
    return TrainState(**{name: stored[name] for name in stored if name != "tracker_ids"})


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

    state = read("state.json", _to_train_state)
    if not has_training_state(checkpoint):
        return _JsonFiles(state, None, (), None)
    has_rank = (checkpoint / f"rank-{rank}.json").exists()
    return _JsonFiles(
        state,
        read("data.json", to_stream_state),
        read("ranks.json", lambda content: [each["meter"] for each in content]),
        read(f"rank-{rank}.json", lambda content: dict(content.items())) if has_rank else None,
    )
