"""Where a run starts: from its own checkpoint, another run's, a Hugging Face model, or scratch.

    checkpoint.load_step >= 0     that checkpoint of the run, without the excluded parts; once, and
                                  from then on what the run has saved since
    the run has checkpoints       the newest intact one, with everything in it
    checkpoint.initial_load_path  weights only; or a checkpoint without the excluded parts
    none of these                 the weights that the model was built with

What a checkpoint contains is defined in `contents`.
"""

import secrets
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from flame_accel.checkpoint.contents import (
    RestoredState,
    UnloadableCheckpointError,
    has_training_state,
    load_checkpoint,
)
from flame_accel.checkpoint.folder import DAMAGED, SUPERSEDED, CheckpointFolder
from flame_accel.checkpoint.identity import (
    TOKENIZER_PATTERNS,
    check_weights_match_config_and_tokenizer,
    read_config_json_if_present,
)
from flame_accel.checkpoint.tensor_storage import load_weights
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.checkpoint_files import MANIFEST, find_damage, step_of_checkpoint_name
from flame_accel.config import CheckpointConfig, UserError
from flame_accel.hub_lookup import check_model_exists_if_hub_reachable, split_hub_name_unless_path
from flame_accel.model_files import find_unreadable_or_missing_model_file
from flame_accel.observe import get_logger
from flame_accel.observe.run_end import read_finished_step
from flame_accel.observe.starts import (
    CONFIG_FILE,
    has_load_step_acted,
    read_options_of_last_start,
)
from flame_accel.parallel import run_on_main_and_broadcast, unwrap_model


class StartingPoint(NamedTuple):
    """Where a run starts, before anything is built."""

    checkpoints: CheckpointFolder
    """The run's own checkpoints."""
    folder: Path | None = None
    """Folder with weights to load; None starts with the weights that the model is built with."""
    own: bool = False
    """Whether it is one of the run's own checkpoints, which is resumed."""
    load_step_acts: bool = False
    """Whether `checkpoint.load_step` chose it, which it does only once."""

    def stored_config_if_present(self) -> dict[str, Any]:
        """The model config stored next to the weights; empty if there is none."""
        return read_config_json_if_present(self.folder) if self.folder else {}


def find_or_download_starting_point(
    accelerator: Accelerator, run_folder: Path, config: CheckpointConfig, *, total_steps: int
) -> StartingPoint:
    """Finds, and if necessary downloads, what the run starts from. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        run_folder: The run folder; nothing in it is changed.
        config: Options of section checkpoint.
        total_steps: Total number of training steps.

    Raises:
        UserError: The requested checkpoint or model does not exist, is damaged, or cannot be
            resumed; or the run has checkpoints, and none of them can be used; or a finished run
            would be replaced by one that resumes nothing of it.
    """
    checkpoints = CheckpointFolder(
        run_folder / config.folder,
        keep_latest_k=config.keep_latest_k,
        start_token=run_on_main_and_broadcast(accelerator, lambda: secrets.token_hex(8)),
    )
    load_step_acts = config.load_step >= 0 and not run_on_main_and_broadcast(
        accelerator, lambda: has_load_step_acted(run_folder, config.load_step)
    )
    own = run_on_main_and_broadcast(
        accelerator,
        lambda: _find_checkpoint_or_raise_if_not_resumable(
            checkpoints, config, total_steps, load_step_acts=load_step_acts
        ),
    )
    if own is not None:
        if config.load_step >= 0 and not load_step_acts:
            get_logger().info(
                "checkpoint.load_step = %d has acted at an earlier start: the run continues from "
                "its newest checkpoint. To go back once more, set load_step = -1 in %s",
                config.load_step,
                run_folder / CONFIG_FILE,
            )
        return StartingPoint(checkpoints, own, own=True, load_step_acts=load_step_acts)
    run_on_main_and_broadcast(
        accelerator, lambda: _check_nothing_is_begun_anew(run_folder, config, total_steps)
    )
    if config.initial_load_path is None:
        return StartingPoint(checkpoints)
    weights = find_or_download_weights(accelerator, config.initial_load_path)
    return StartingPoint(checkpoints, weights)


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
                lambda: _find_checkpoint_or_raise_if_not_resumable(
                    start.checkpoints, config, total_steps, load_step_acts=start.load_step_acts
                ),
            )
            continue
        get_logger().info("continuing after step %d, from %s", restored.state.step, folder)
        return restored._replace(checkpoint=folder)
    raise AssertionError("a run that has checkpoints does not begin without one")


def delete_leftovers_and_rename_newer_if_enabled(
    accelerator: Accelerator, start: StartingPoint, loaded: Path | None, config: CheckpointConfig
) -> None:
    """Once a run continues: renames its checkpoints that no later start may load.

    Args:
        accelerator: The run's accelerator; the main process owns the run folder.
        start: Where the run starts.
        loaded: The checkpoint of the run that was loaded.
        config: Options of section checkpoint.
    """
    if accelerator.is_main_process and config.enable_checkpoint:
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
        raise _initial_load_error(
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
        raise _initial_load_error(
            name, f"cannot be loaded: {error}", "choose another checkpoint"
        ) from error
    if restored.state.step >= total_steps:
        raise _initial_load_error(
            name,
            f"is from step {restored.state.step}: "
            f"nothing is left of training.steps = {total_steps}",
            "raise training.steps, or add train_state to checkpoint.exclude_from_loading",
        )
    # the trackers must not append to the other run
    restored.state.tracker_ids.clear()
    get_logger().info("starting after step %d, from %s", restored.state.step, name)
    return restored


def find_or_download_weights(accelerator: Accelerator, name_or_path: str) -> Path:
    """The folder with the safetensors of a checkpoint or model. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        name_or_path: A folder, or a model on the Hub, with `@revision` or without, which one
            process of each machine downloads.

    Raises:
        UserError: It does not exist, is damaged, or contains no safetensors.
    """
    folder = Path(name_or_path)
    if not folder.exists():
        with accelerator.local_main_process_first():
            folder = _download_or_find_cached_weights(name_or_path)
    run_on_main_and_broadcast(
        accelerator, lambda: _check_weights_intact_and_readable(folder, name_or_path)
    )
    return folder


def _find_checkpoint_or_raise_if_not_resumable(
    checkpoints: CheckpointFolder,
    config: CheckpointConfig,
    total_steps: int,
    *,
    load_step_acts: bool,
) -> Path | None:
    """The run's own checkpoint to resume, or of its last step; None if it has none."""
    if not config.enable_checkpoint:
        return None
    found = None if load_step_acts else checkpoints.find_newest_intact_checkpoint()
    if found is None and config.load_step >= 0:
        found = checkpoints.find_checkpoint_of_step(config.load_step)
    if found is None:
        return None
    step = step_of_checkpoint_name(found.name) or 0
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
        for older, folder in checkpoints.list_entries().checkpoints.items()
        if has_training_state(folder)
    ]
    from_full = f"resume step {full[-1]} with checkpoint.load_step, or " if full else ""
    raise UserError(
        f"step {step} contains only the model's weights (checkpoint.model_weights_only was set): "
        f"it cannot be resumed to reach training.steps = {total_steps}",
        where=str(found),
        remedy=f"{from_full}start a new run, with another job.dump_folder, from "
        f"checkpoint.initial_load_path {found}",
    )


def _check_nothing_is_begun_anew(
    run_folder: Path, config: CheckpointConfig, total_steps: int
) -> None:
    """Checks that a start that resumes nothing leaves no result and no checkpoint of a run behind.

    `checkpoint.no_enable_checkpoint` asks to leave checkpoints behind; what has finished stays.
    """
    step = read_finished_step(run_folder)
    if step is None:
        before = read_options_of_last_start(run_folder).get("checkpoint.folder")
        if not config.enable_checkpoint or before in (None, config.folder):
            return
        saved = CheckpointFolder(run_folder / str(before), keep_latest_k=0)
        if saved.list_entries().checkpoints:
            raise UserError(
                f"the run has its checkpoints in {saved.path}",
                where=f"checkpoint.folder = {config.folder}",
                remedy="repeat the checkpoint.folder of the last start. To begin anew on purpose, "
                "move its checkpoints away, or choose another job.dump_folder",
                exit_code=2,
            )
        return
    reason = (
        f"there is no checkpoint in checkpoint.folder = {config.folder}"
        if config.enable_checkpoint
        else "checkpoints are off (checkpoint.no_enable_checkpoint)"
    )
    raise UserError(
        f"holds a run that finished after step {step}, and nothing of it would be resumed to reach "
        f"training.steps = {total_steps}: {reason}",
        where=f"job.dump_folder = {run_folder}",
        remedy="repeat the checkpoint.folder of that run, with checkpoints enabled, to train on; "
        "choose another job.dump_folder to train anew",
    )


def _download_or_find_cached_weights(name: str) -> Path:
    online = check_model_exists_if_hub_reachable(
        name,
        where=f"checkpoint.initial_load_path {name}",
        remedy="a path must name an existing folder",
    )
    try:
        patterns = ["*.safetensors*", "config.json", *TOKENIZER_PATTERNS]
        repo_id, revision = split_hub_name_unless_path(name)
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=not online,
            )
        )
    except (OSError, ValueError) as error:
        raise _initial_load_error(
            name,
            f"is not a folder, and cannot be loaded from the Hub: {str(error).splitlines()[0]}",
            "check the name, the network and your access (HF_TOKEN); a folder needs no network",
        ) from error


def _check_weights_intact_and_readable(folder: Path, name_or_path: str) -> None:
    damage = find_damage(folder) if (folder / MANIFEST).is_file() else None
    if damage is not None:
        raise _initial_load_error(
            name_or_path, f"is damaged: {damage}", "choose another checkpoint"
        )
    unreadable = find_unreadable_or_missing_model_file(folder)
    if unreadable is not None:
        raise _initial_load_error(name_or_path, *unreadable)


def _initial_load_error(name_or_path: str | None, problem: str, remedy: str) -> UserError:
    return UserError(problem, where=f"checkpoint.initial_load_path {name_or_path}", remedy=remedy)
