"""The contents of a checkpoint: everything a run needs to go on with the same bits.

    step-N/
      config.json, model*.safetensors, tokenizer    a Hugging Face model with the fp32 weights
      state.json                                    step, tokens, tracker ids
      optimizer/*.safetensors                       `<parameter>.<state>`, sharded as in memory
      data.json                                     cursors of all lanes, whatever the world size
      ranks.json                                    open measurements of all data ranks
      rank-R.json                                   random states of a rank

One that holds only the model's weights ends with state.json. Tensors are read and written in
`tensors`; how a folder becomes complete is in `folder`, where a run starts from in `start`.
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
from flame_accel.checkpoint.hf import gather_weights, save_hf_model
from flame_accel.checkpoint.randomness import random_state, restore_random_state
from flame_accel.checkpoint.tensors import load_optimizer, load_weights, save_optimizer
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import CheckpointConfig
from flame_accel.data import merge_states
from flame_accel.files import write_json
from flame_accel.observe import get_logger
from flame_accel.observe.run_folder import package_versions
from flame_accel.parallel import tp_size, unwrap


class Restored(NamedTuple):
    """What a run goes on with, beside model and optimizer; as it stands, a run that begins."""

    state: TrainState
    data_state: dict[str, Any] | None = None
    """Cursors of all lanes; None starts at the beginning of the data."""
    rank_states: Sequence[Mapping[str, Any]] = ()
    """What each data rank of the saving run knew, in their order."""


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
    only_weights_in: torch.dtype | None = None,
) -> Path:
    """Writes the checkpoint of `state.step`. Every rank must call it; returns when it is complete.

    Args:
        accelerator: Of the run.
        folder: Of the run's checkpoints.
        state: Counters.
        model: Prepared.
        optimizer: Prepared.
        tokenizer: Saved beside the weights.
        data_state: Cursors of this rank's lanes.
        rank_state: What this data rank alone knows, JSON-able and small.
        only_weights_in: Leave out all that a restart needs beside the weights, and store these in
            this dtype; None saves everything.
    """
    weights = gather_weights(accelerator, model)
    if accelerator.is_main_process:
        temporary = folder.begin(state.step)
        inner = unwrap(accelerator, model)
        save_hf_model(inner, weights, tokenizer, temporary, only_weights_in or torch.float32)
        write_json(temporary / "state.json", asdict(state))
    accelerator.wait_for_everyone()
    if only_weights_in is None:
        temporary = folder.temporary(state.step)
        save_optimizer(accelerator, temporary, model, optimizer)
        _save_positions(accelerator, temporary, data_state, rank_state)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.commit(
            state.step,
            {
                "step": state.step,
                "tokens": state.tokens,
                "processes": accelerator.num_processes,
                "versions": package_versions(),
            },
        )
    accelerator.wait_for_everyone()
    return folder.final(state.step)


def weights_only_dtype(config: CheckpointConfig, *, last: bool) -> torch.dtype | None:
    """The dtype of a checkpoint that holds only the model's weights; None for a complete one.

    Args:
        config: Of the run.
        last: Whether the checkpoint is of the last step.
    """
    if config.create_seed_checkpoint:
        # the rest is built anew, for any number of ranks
        return torch.float32
    if config.model_weights_only and last:
        return getattr(torch, config.export_dtype)
    return None


def _save_positions(
    accelerator: Accelerator,
    checkpoint: Path,
    data_state: dict[str, Any],
    rank_state: dict[str, Any],
) -> None:
    """Where every rank stands in data, measurements and randomness."""
    # TP ranks are neighbors and know the same
    states = gather_object([(data_state, rank_state)])[:: tp_size(accelerator)]
    if accelerator.is_main_process:
        write_json(checkpoint / "data.json", merge_states([data for data, _ in states]))
        write_json(checkpoint / "ranks.json", [rank for _, rank in states])
    write_json(checkpoint / f"rank-{accelerator.process_index}.json", random_state())


def is_full(checkpoint: Path) -> bool:
    """Whether a checkpoint holds more than the model's weights."""
    return (checkpoint / "data.json").is_file()


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    leave_out: Collection[str] = (),
) -> Restored:
    """Restores what a checkpoint holds, random states included. Every rank must call it.

    Args:
        accelerator: Of the run.
        checkpoint: A whole one; from one without anything but weights only these are restored.
        model: Prepared.
        optimizer: Prepared.
        leave_out: Parts that stay as they are: `optimizer`, `dataloader`, `train_state`.

    Raises:
        UserError: The checkpoint is of another model or optimizer.
    """
    load_weights(accelerator, model, checkpoint)
    full = is_full(checkpoint)
    if full and "optimizer" not in leave_out:
        load_optimizer(accelerator, model, optimizer, checkpoint)
    data_state = None
    if full and "dataloader" not in leave_out:
        data_state = read_json(checkpoint / "data.json")
    if "train_state" in leave_out:
        return Restored(TrainState(), data_state)
    state = TrainState(**read_json(checkpoint / "state.json"))
    if not full:
        return Restored(state)
    _restore_randomness(accelerator, checkpoint)
    return Restored(state, data_state, read_json(checkpoint / "ranks.json"))


def _restore_randomness(accelerator: Accelerator, checkpoint: Path) -> None:
    path = checkpoint / f"rank-{accelerator.process_index}.json"
    if path.exists():
        restore_random_state(read_json(path))
        return
    get_logger().warning(
        "rank %d was not part of the run that saved %s: it keeps its fresh random states",
        accelerator.process_index,
        checkpoint,
    )


def read_json(path: Path) -> Any:
    """The contents of a file of a checkpoint."""
    return json.loads(path.read_text(encoding="utf-8"))
