"""Finds where a run starts: at its own checkpoint, another run's, a model, or from scratch.

    checkpoint.load_step >= 0     that checkpoint of the run, without the excluded parts; once, and
                                  from then on what the run has saved since
    the run has checkpoints       the newest intact one, with everything in it
    checkpoint.initial_load_path  weights only; or a checkpoint without the excluded parts
    none of these                 the weights that the model was built with

Nothing is loaded here: that is in `restore`, once the model is built.
"""

import secrets
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from huggingface_hub import snapshot_download

from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.identity import TOKENIZER_PATTERNS, read_config_json_if_present
from flame_accel.checkpoint_files import (
    MANIFEST,
    find_damage,
    has_training_state,
    step_of_checkpoint_name,
)
from flame_accel.config import CheckpointConfig, UserError
from flame_accel.hub_lookup import check_model_exists_if_hub_reachable, split_hub_name_unless_path
from flame_accel.io_errors import retry_failed_reads
from flame_accel.model_files import find_unreadable_or_missing_model_file
from flame_accel.observe import get_logger
from flame_accel.observe.run_end import read_finished_step
from flame_accel.observe.starts import (
    CONFIG_FILE,
    has_load_step_acted,
    read_options_of_last_start,
)
from flame_accel.parallel import run_on_main_and_broadcast

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of the files of weights in a folder of a Hugging Face model."""


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
        lambda: find_checkpoint_or_raise_if_not_resumable(
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
    weights = _find_or_download_weights(accelerator, config.initial_load_path)
    return StartingPoint(checkpoints, weights)


def _find_or_download_weights(accelerator: Accelerator, name_or_path: str) -> Path:
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


def find_checkpoint_or_raise_if_not_resumable(
    checkpoints: CheckpointFolder,
    config: CheckpointConfig,
    total_steps: int,
    *,
    load_step_acts: bool,
) -> Path | None:
    """The run's own checkpoint to resume, or of its last step; None if it has none.

    Args:
        checkpoints: The run's own checkpoints.
        config: Options of section checkpoint.
        total_steps: Total number of training steps.
        load_step_acts: Whether `checkpoint.load_step` chooses it.

    Raises:
        UserError: It cannot be resumed.
    """
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
        raise initial_load_error(
            name,
            f"is not a folder, and cannot be loaded from the Hub: {str(error).splitlines()[0]}",
            "check the name, the network and your access (HF_TOKEN); a folder needs no network",
        ) from error


def _check_weights_intact_and_readable(folder: Path, name_or_path: str) -> None:
    damage = find_damage(folder) if (folder / MANIFEST).is_file() else None
    if damage is not None:
        raise initial_load_error(name_or_path, f"is damaged: {damage}", "choose another checkpoint")
    unreadable = retry_failed_reads(lambda: find_unreadable_or_missing_model_file(folder))
    if unreadable is not None:
        raise initial_load_error(name_or_path, *unreadable)


def initial_load_error(name_or_path: str | None, problem: str, remedy: str) -> UserError:
    """The error that what `checkpoint.initial_load_path` names cannot be started from."""
    return UserError(problem, where=f"checkpoint.initial_load_path {name_or_path}", remedy=remedy)


def warn_about_unused_weights(model_config_path: str) -> None:
    """Logs that a model starts with random weights if the folder of its config holds others."""
    folder = Path(model_config_path)
    if folder.name == "config.json":
        folder = folder.parent
    if any(path for pattern in WEIGHT_FILES for path in folder.glob(pattern)):
        get_logger().warning(
            "starting with random weights: the weights in %s are not loaded; to start with them, "
            "add --checkpoint.initial_load_path %s",
            folder,
            folder,
        )
