"""Where a run starts: from its own checkpoint, another run's, a Hugging Face model, or scratch.

    checkpoint.load_step >= 0     that checkpoint of the run, without the excluded parts
    the run has checkpoints       the newest intact one, with everything in it
    checkpoint.initial_load_path  weights only; or a checkpoint without the excluded parts
    none of these                 the weights that the model was built with

What a checkpoint contains is defined in `contents`.
"""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from huggingface_hub import snapshot_download
from torch import nn

from flame_accel.checkpoint.contents import RestoredState, has_training_state, load_checkpoint
from flame_accel.checkpoint.folder import (
    MANIFEST,
    STEP_PREFIX,
    CheckpointFolder,
    find_checkpoint_damage,
)
from flame_accel.checkpoint.tensor_storage import load_weights
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import CheckpointConfig, UserError
from flame_accel.hub_lookup import check_model_exists_if_hub_reachable
from flame_accel.observe import get_logger


def restore_starting_point(
    accelerator: Accelerator,
    checkpoints: CheckpointFolder,
    config: CheckpointConfig,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    total_steps: int,
) -> RestoredState:
    """Loads model and optimizer from where the run starts. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        checkpoints: The run's own checkpoints.
        config: Options of section checkpoint.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        total_steps: Total number of training steps.

    Returns:
        The rest of the loaded state; that of a new run if nothing was loaded.

    Raises:
        UserError: The requested checkpoint or model does not exist, is damaged, or cannot be
            resumed.
    """
    own = _run_on_main_and_broadcast(
        accelerator, lambda: _find_checkpoint_to_resume(checkpoints, config, total_steps)
    )
    if own is not None:
        # a run that is started again resumes everything from its newest checkpoint
        excluded = config.exclude_from_loading if config.load_step >= 0 else ()
        restored = load_checkpoint(
            accelerator, own, model=model, optimizer=optimizer, excluded_parts=excluded
        )
        get_logger().info("continuing after step %d, from %s", restored.state.step, own)
        return restored
    if config.initial_load_path is None:
        return RestoredState(TrainState())
    return _start_from_initial_load_path(
        accelerator,
        find_or_download_weights(accelerator, config.initial_load_path),
        config,
        model=model,
        optimizer=optimizer,
        total_steps=total_steps,
    )


def _start_from_initial_load_path(
    accelerator: Accelerator,
    source: Path,
    config: CheckpointConfig,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    total_steps: int,
) -> RestoredState:
    """Starts from `initial_load_path`: with its weights, or with everything of another run."""
    if config.initial_load_model_weights_only:
        load_weights(accelerator, model, source)
        get_logger().info("starting with the weights of %s", source)
        return RestoredState(TrainState())
    if not has_training_state(source):
        raise _initial_load_error(
            source,
            "is not a full checkpoint: it contains only weights",
            "choose a step-N folder of a run, or remove "
            "checkpoint.no_initial_load_model_weights_only",
        )
    restored = load_checkpoint(
        accelerator,
        source,
        model=model,
        optimizer=optimizer,
        excluded_parts=config.exclude_from_loading,
    )
    if restored.state.step >= total_steps:
        raise _initial_load_error(
            source,
            f"is from step {restored.state.step}: "
            f"nothing is left of training.steps = {total_steps}",
            "raise training.steps, or add train_state to checkpoint.exclude_from_loading",
        )
    # the trackers must not append to the other run
    restored.state.tracker_ids.clear()
    get_logger().info("starting after step %d, from %s", restored.state.step, source)
    return restored


def find_or_download_weights(accelerator: Accelerator, name_or_path: str) -> Path:
    """The folder with the safetensors of a checkpoint or model. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        name_or_path: A folder, or a model on the Hub, which one process of each machine downloads.

    Raises:
        UserError: It does not exist, is damaged, or contains no safetensors.
    """
    folder = Path(name_or_path)
    if not folder.exists():
        with accelerator.local_main_process_first():
            folder = _download_weights(name_or_path)
    _run_on_main_and_broadcast(accelerator, lambda: _check_weights_folder(folder))
    return folder


def _run_on_main_and_broadcast(
    accelerator: Accelerator, find_path: Callable[[], Path | None]
) -> Path | None:
    """Calls `find_path` on the main process; every rank gets its result, or its `UserError`."""
    outcome: list[Path | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [find_path()]
        except UserError as error:
            outcome = [error]
    [found] = broadcast_object_list(outcome)
    if isinstance(found, UserError):
        raise found
    return found


def _find_checkpoint_to_resume(
    checkpoints: CheckpointFolder, config: CheckpointConfig, total_steps: int
) -> Path | None:
    """The run's own checkpoint to resume; None if it has none."""
    if not config.enable_checkpoint:
        return None
    found = checkpoints.find_intact_checkpoint_and_clean_up(config.load_step)
    if found is None:
        return None
    step = int(found.name.removeprefix(STEP_PREFIX))
    if config.create_seed_checkpoint:
        raise UserError(
            f"the run already has a checkpoint, of step {step}",
            where=f"checkpoint.create_seed_checkpoint, {checkpoints.path}",
            remedy="remove the option to resume it, or use another job.dump_folder",
        )
    if step == 0 or step >= total_steps or has_training_state(found):
        return found
    full = [
        older
        for older in checkpoints.list_steps()
        if has_training_state(checkpoints.checkpoint_path(older))
    ]
    from_full = f"resume step {full[-1]} with checkpoint.load_step, or " if full else ""
    raise UserError(
        f"step {step} contains only the model's weights (checkpoint.model_weights_only was set): "
        f"it cannot be resumed to reach training.steps = {total_steps}",
        where=str(found),
        remedy=f"{from_full}start a new run, with another job.dump_folder, from "
        f"checkpoint.initial_load_path {found}",
    )


def _download_weights(name: str) -> Path:
    online = check_model_exists_if_hub_reachable(
        name,
        where=f"checkpoint.initial_load_path {name}",
        remedy="a path must name an existing folder",
    )
    try:
        patterns = ["*.safetensors*", "config.json"]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not online))
    except (OSError, ValueError) as error:
        raise _initial_load_error(
            name,
            f"is not a folder, and cannot be loaded from the Hub: {str(error).splitlines()[0]}",
            "check the name, the network and your access (HF_TOKEN); a folder needs no network",
        ) from error


def _check_weights_folder(folder: Path) -> None:
    remedy = "choose a step-N folder of a run, its hf/, or a Hugging Face model with safetensors"
    if next(folder.glob("*.safetensors"), None) is None:
        raise _initial_load_error(folder, "contains no safetensors (pickles are not read)", remedy)
    damage = find_checkpoint_damage(folder) if (folder / MANIFEST).is_file() else None
    if damage is not None:
        raise _initial_load_error(folder, f"is damaged: {damage}", "choose another checkpoint")


def _initial_load_error(source: str | Path, problem: str, remedy: str) -> UserError:
    return UserError(problem, where=f"checkpoint.initial_load_path {source}", remedy=remedy)
