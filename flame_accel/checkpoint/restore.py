"""Loads model, optimizer and training state from where a run starts.

`starting_point` finds that place; what a checkpoint contains is defined in `contents`.
"""

from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from flame_accel.checkpoint.contents import (
    RestoredState,
    load_checkpoint,
)
from flame_accel.checkpoint.failed_loads import UnloadableCheckpointError
from flame_accel.checkpoint.folder import DAMAGED, SUPERSEDED
from flame_accel.checkpoint.identity import (
    check_weights_match_config_and_tokenizer,
)
from flame_accel.checkpoint.starting_point import (
    StartingPoint,
    find_checkpoint_or_raise_if_not_resumable,
    initial_load_error,
)
from flame_accel.checkpoint.tensor_storage import load_weights
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.checkpoint_files import has_training_state
from flame_accel.config import CheckpointConfig, UserError
from flame_accel.observe import get_logger
from flame_accel.parallel import run_on_main_and_broadcast, unwrap_model


def restore_starting_point(
    accelerator: Accelerator,
    start: StartingPoint,
    config: CheckpointConfig,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    tokenizer: PreTrainedTokenizerBase,
    total_steps: int,
) -> RestoredState:
    """Loads model and optimizer from where the run starts. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        start: What `find_or_download_starting_point` found.
        config: Options of section checkpoint.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        tokenizer: The run's tokenizer.
        total_steps: Total number of training steps.

    Returns:
        The rest of the loaded state; that of a new run if nothing was loaded.

    Raises:
        UserError: The weights belong to another model, or the checkpoint cannot be resumed.
    """
    if start.folder is None:
        return RestoredState(TrainState())
    if start.own:
        return _load_own_checkpoint_or_one_before(
            accelerator, start, config, model, optimizer, tokenizer, total_steps
        )
    _check_weights_match_config_and_tokenizer(
        start,
        start.folder,
        config,
        model_config=unwrap_model(accelerator, model).config,
        tokenizer=tokenizer,
    )
    return _load_initial_weights_or_full_checkpoint(
        accelerator,
        start.folder,
        config,
        model=model,
        optimizer=optimizer,
        total_steps=total_steps,
    )


def _load_own_checkpoint_or_one_before(
    accelerator: Accelerator,
    start: StartingPoint,
    config: CheckpointConfig,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    tokenizer: PreTrainedTokenizerBase,
    total_steps: int,
) -> RestoredState:
    """Loads the checkpoint that was found, or the newest one before it that can be loaded."""
    folder = start.folder
    # a run that is started again resumes everything from its newest checkpoint
    excluded = config.exclude_from_loading if start.load_step_acts else ()
    while folder is not None:
        model_config = unwrap_model(accelerator, model).config
        _check_weights_match_config_and_tokenizer(start, folder, config, model_config, tokenizer)
        try:
            restored = load_checkpoint(
                accelerator, folder, model=model, optimizer=optimizer, excluded_parts=excluded
            )
        except UnloadableCheckpointError as error:
            start.checkpoints.unloadable[folder] = str(error)
            folder = run_on_main_and_broadcast(
                accelerator,
                lambda: find_checkpoint_or_raise_if_not_resumable(
                    start.checkpoints, config, total_steps, load_step_acts=start.load_step_acts
                ),
            )
            continue
        step = restored.state.step
        get_logger().info("continuing after step %d, from %s", step, folder)
        if step >= total_steps:
            get_logger().info(
                "nothing is left to train (training.steps = %d): the model of step %d is exported",
                *(total_steps, step),
            )
        return restored._replace(checkpoint=folder)
    raise AssertionError("a run that has checkpoints does not begin without one")


def delete_leftovers_and_rename_newer_if_enabled(
    start: StartingPoint, loaded: Path | None, config: CheckpointConfig
) -> None:
    """Once a run continues: renames its checkpoints that no later start may load.

    Called by the main process, which owns the run folder.

    Args:
        start: Where the run starts.
        loaded: The checkpoint of the run that was loaded.
        config: Options of section checkpoint.
    """
    if config.enable_checkpoint:
        start.checkpoints.delete_leftovers_and_rename_newer(
            loaded, newer_suffix=SUPERSEDED if start.load_step_acts else DAMAGED
        )


def _check_weights_match_config_and_tokenizer(
    start: StartingPoint,
    folder: Path,
    config: CheckpointConfig,
    model_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Checks that the weights to start from are this model's."""
    if start.own:
        where = str(folder)
        remedy = "repeat the model and the tokenizer of that run, or use another job.dump_folder"
    else:
        where = f"checkpoint.initial_load_path {config.initial_load_path}"
        remedy = (
            "remove model.config to take theirs; a difference that you intend is accepted by name: "
            "checkpoint.accept_differences"
        )
    check_weights_match_config_and_tokenizer(
        folder,
        model_config,
        tokenizer,
        accepted=config.accept_differences,
        where=where,
        remedy=remedy,
    )


def _load_initial_weights_or_full_checkpoint(
    accelerator: Accelerator,
    source: Path,
    config: CheckpointConfig,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    total_steps: int,
) -> RestoredState:
    """Starts from `initial_load_path`: with its weights, or with everything of another run."""
    # of a model on the Hub, not the folder that it was downloaded to
    name = config.initial_load_path
    if config.initial_load_model_weights_only:
        load_weights(accelerator, model, source)
        get_logger().info("starting with the weights of %s", name)
        return RestoredState(TrainState())
    if not has_training_state(source):
        raise initial_load_error(
            name,
            "is not a full checkpoint: it contains only weights",
            "choose a step-N folder of a run, or remove "
            "checkpoint.no_initial_load_model_weights_only",
        )
    try:
        restored = load_checkpoint(
            accelerator,
            source,
            model=model,
            optimizer=optimizer,
            excluded_parts=config.exclude_from_loading,
        )
    except UnloadableCheckpointError as error:
        raise initial_load_error(
            name, f"cannot be loaded: {error}", "choose another checkpoint"
        ) from error
    if restored.state.step >= total_steps:
        raise initial_load_error(
            name,
            f"is from step {restored.state.step}: "
            f"nothing is left of training.steps = {total_steps}",
            "raise training.steps, or add train_state to checkpoint.exclude_from_loading",
        )
    restored.state.rewinds = 0
    get_logger().info("starting after step %d, from %s", restored.state.step, name)
    return restored


def load_checkpoint_or_raise_user_error(
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
) -> RestoredState:
    """Loads everything of one of the run's own checkpoints. Every rank must call it.

    Raises:
        UserError: It cannot be loaded; model and optimizer are then undefined.
    """
    try:
        restored = load_checkpoint(accelerator, checkpoint, model=model, optimizer=optimizer)
    except UnloadableCheckpointError as error:
        raise UserError(
            f"cannot be loaded: {error}",
            where=str(checkpoint),
            remedy="repeat the command: it continues from a checkpoint that can be",
        ) from error
    return restored._replace(checkpoint=checkpoint)
