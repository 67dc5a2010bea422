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

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase

from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf_model import gather_full_weights_to_main, save_hf_model
from flame_accel.checkpoint.rng_state import get_rng_state, set_rng_state
from flame_accel.checkpoint.tensor_storage import (
    load_optimizer_state,
    load_weights,
    save_optimizer_state,
)
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import CheckpointConfig
from flame_accel.data import merge_rank_states
from flame_accel.files import write_json_atomically
from flame_accel.observe import get_logger
from flame_accel.observe.run_folder import package_versions
from flame_accel.parallel import tp_size, unwrap


class RestoredState(NamedTuple):
    """What is restored in addition to model and optimizer; the defaults are a new run's."""

    state: TrainState
    data_state: dict[str, Any] | None = None
    """Cursors of all lanes; None starts at the beginning of the data."""
    rank_states: Sequence[Mapping[str, Any]] = ()
    """`rank_state` of every data-parallel rank of the run that saved it, by rank."""


def save_checkpoint(
    accelerator: Accelerator,
    folder: CheckpointFolder,
    state: TrainState,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    tokenizer: PreTrainedTokenizerBase,
    data_state: dict[str, Any],
    rank_state: dict[str, Any],
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
        data_state: Cursors of this rank's lanes.
        rank_state: Other state of this data-parallel rank, JSON-able and small.
        weights_only_dtype: Saves only the weights, in this dtype; None saves everything.

    Returns:
        Path of the checkpoint.
    """
    weights = gather_full_weights_to_main(accelerator, model)
    if accelerator.is_main_process:
        temporary = folder.create_temporary(state.step)
        inner = unwrap(accelerator, model)
        save_hf_model(inner, weights, tokenizer, temporary, weights_only_dtype or torch.float32)
        write_json_atomically(temporary / "state.json", asdict(state))
    accelerator.wait_for_everyone()
    if weights_only_dtype is None:
        temporary = folder.temporary_path(state.step)
        save_optimizer_state(accelerator, temporary, model, optimizer)
        _save_rank_states(accelerator, temporary, data_state, rank_state)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.commit_temporary(
            state.step,
            {
                "step": state.step,
                "tokens": state.tokens,
                "processes": accelerator.num_processes,
                "versions": package_versions(),
            },
        )
    accelerator.wait_for_everyone()
    return folder.checkpoint_path(state.step)


def weights_only_dtype(config: CheckpointConfig, *, last: bool) -> torch.dtype | None:
    """The dtype of a checkpoint that contains only weights; None if it contains everything.

    Args:
        config: Options of section checkpoint.
        last: Whether the checkpoint is of the last step.
    """
    if config.create_seed_checkpoint:
        # everything else is initialised by the run that loads it, for any number of ranks
        return torch.float32
    if config.model_weights_only and last:
        return getattr(torch, config.export_dtype)
    return None


def _save_rank_states(
    accelerator: Accelerator,
    checkpoint: Path,
    data_state: dict[str, Any],
    rank_state: dict[str, Any],
) -> None:
    """Writes what differs between ranks: data cursors, meters and random states."""
    # the ranks of a tensor-parallel group are consecutive and have equal states
    states = gather_object([(data_state, rank_state)])[:: tp_size(accelerator)]
    if accelerator.is_main_process:
        write_json_atomically(
            checkpoint / "data.json", merge_rank_states([data for data, _ in states])
        )
        write_json_atomically(checkpoint / "ranks.json", [rank for _, rank in states])
    write_json_atomically(checkpoint / f"rank-{accelerator.process_index}.json", get_rng_state())


def has_training_state(checkpoint: Path) -> bool:
    """Whether a checkpoint contains more than the model's weights."""
    return (checkpoint / "data.json").is_file()


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    exclude: Collection[str] = (),
) -> RestoredState:
    """Loads a checkpoint, including random states. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        checkpoint: Path of an intact checkpoint, or of one with only weights and counters.
        model: The model as Accelerate prepared it; its weights are overwritten.
        optimizer: The optimizer as Accelerate prepared it; its state is overwritten.
        exclude: Parts that are not loaded: `optimizer`, `dataloader`, `train_state`.

    Returns:
        The rest of the loaded state.

    Raises:
        UserError: The checkpoint belongs to another model or optimizer.
    """
    load_weights(accelerator, model, checkpoint)
    full = has_training_state(checkpoint)
    if full and "optimizer" not in exclude:
        load_optimizer_state(accelerator, model, optimizer, checkpoint)
    data_state = None
    if full and "dataloader" not in exclude:
        data_state = read_json(checkpoint / "data.json")
    if "train_state" in exclude:
        return RestoredState(TrainState(), data_state)
    state = TrainState(**read_json(checkpoint / "state.json"))
    if not full:
        return RestoredState(state)
    _restore_rng_state(accelerator, checkpoint)
    return RestoredState(state, data_state, read_json(checkpoint / "ranks.json"))


def _restore_rng_state(accelerator: Accelerator, checkpoint: Path) -> None:
    path = checkpoint / f"rank-{accelerator.process_index}.json"
    if path.exists():
        set_rng_state(read_json(path))
        return
    get_logger().warning(
        "rank %d did not exist when %s was saved: its random number generators start afresh",
        accelerator.process_index,
        checkpoint,
    )


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
