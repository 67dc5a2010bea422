"""Where a run starts: from its own checkpoint, another run's, a Hugging Face model, or nothing.

    checkpoint.load_step >= 0     that checkpoint of the run, without the parts to exclude
    checkpoints of its own        the newest whole one, with everything that it holds
    checkpoint.initial_load_path  weights only; or a checkpoint without the parts to exclude
    none of these                 the weights that the model was built with

What a checkpoint holds is in `state`.
"""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from huggingface_hub import snapshot_download
from torch import nn

from flame_accel.checkpoint.folder import MANIFEST, STEP_PREFIX, CheckpointFolder, find_damage
from flame_accel.checkpoint.state import Restored, is_full, load_checkpoint
from flame_accel.checkpoint.tensors import load_weights
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import CheckpointConfig, UserError
from flame_accel.observe import get_logger


def restore(
    accelerator: Accelerator,
    checkpoints: CheckpointFolder,
    config: CheckpointConfig,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    steps: int,
) -> Restored:
    """Brings model and optimizer to where the run starts. Every rank must call it.

    Args:
        accelerator: Of the run.
        checkpoints: Of the run.
        config: What to look for.
        model: Prepared.
        optimizer: Prepared.
        steps: That the run is to have in the end.

    Raises:
        UserError: What was asked for is not there, is damaged, or cannot be gone on from.
    """
    own = _agree(accelerator, lambda: _find_own(checkpoints, config, steps))
    if own is not None:
        # a run that is started again goes on from its newest checkpoint with everything
        leave_out = config.exclude_from_loading if config.load_step >= 0 else ()
        restored = load_checkpoint(
            accelerator, own, model=model, optimizer=optimizer, leave_out=leave_out
        )
        get_logger().info("continuing after step %d, from %s", restored.state.step, own)
        return restored
    if config.initial_load_path is None:
        return Restored(TrainState())
    return _start_elsewhere(
        accelerator,
        find_weights(accelerator, config.initial_load_path),
        config,
        model=model,
        optimizer=optimizer,
        steps=steps,
    )


def _start_elsewhere(
    accelerator: Accelerator,
    source: Path,
    config: CheckpointConfig,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    steps: int,
) -> Restored:
    """Begins with the weights of another run or model, or goes on from another run."""
    if config.initial_load_model_weights_only:
        load_weights(accelerator, model, source)
        get_logger().info("starting with the weights of %s", source)
        return Restored(TrainState())
    if not is_full(source):
        raise _initial_error(
            source,
            "is not a full checkpoint: it holds nothing but weights",
            "name a step-N folder of a run, or remove "
            "checkpoint.no_initial_load_model_weights_only",
        )
    restored = load_checkpoint(
        accelerator,
        source,
        model=model,
        optimizer=optimizer,
        leave_out=config.exclude_from_loading,
    )
    if restored.state.step >= steps:
        raise _initial_error(
            source,
            f"is of step {restored.state.step}: nothing is left of training.steps = {steps}",
            "raise training.steps, or add train_state to checkpoint.exclude_from_loading",
        )
    # the trackers are not to go on with the other run
    restored.state.tracker_ids.clear()
    get_logger().info("starting after step %d, from %s", restored.state.step, source)
    return restored


def find_weights(accelerator: Accelerator, name_or_path: str) -> Path:
    """The folder with the safetensors of a checkpoint or model. Every rank must call it.

    Args:
        accelerator: Of the run.
        name_or_path: A folder, or a name on the Hub, which one process of each machine downloads.

    Raises:
        UserError: It is not there, is damaged, or holds no safetensors.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.exists():
        with accelerator.local_main_process_first():
            folder = _download(name_or_path)
    _agree(accelerator, lambda: _check_usable(folder))
    return folder


def _agree(accelerator: Accelerator, find: Callable[[], Path | None]) -> Path | None:
    """What the main process finds, or its error, on every rank."""
    outcome: list[Path | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [find()]
        except UserError as error:
            outcome = [error]
    [found] = broadcast_object_list(outcome)
    if isinstance(found, UserError):
        raise found
    return found


def _find_own(checkpoints: CheckpointFolder, config: CheckpointConfig, steps: int) -> Path | None:
    """The checkpoint of the run itself to go on from; None begins."""
    if not config.enable_checkpoint:
        return None
    found = checkpoints.find(config.load_step)
    if found is None:
        return None
    step = int(found.name.removeprefix(STEP_PREFIX))
    if config.create_seed_checkpoint:
        raise UserError(
            f"the run already has a checkpoint, of step {step}",
            where=f"checkpoint.create_seed_checkpoint, {checkpoints.path}",
            remedy="remove the option to go on from it, or use another job.dump_folder",
        )
    if step == 0 or step >= steps or is_full(found):
        return found
    full = [older for older in checkpoints.steps() if is_full(checkpoints.final(older))]
    from_full = f"go on from step {full[-1]} with checkpoint.load_step, or " if full else ""
    raise UserError(
        f"step {step} holds only the model's weights (checkpoint.model_weights_only was set): the "
        f"run cannot go on from it to step {steps}",
        where=str(found),
        remedy=f"{from_full}start a new run, with another job.dump_folder, from "
        f"checkpoint.initial_load_path {found}",
    )


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors*", "config.json"]))
    except (OSError, ValueError) as error:
        raise _initial_error(
            name,
            f"no such folder, and no model on the Hub can be loaded: {str(error).splitlines()[0]}",
            "check the name, the network and your access (HF_TOKEN); a folder needs no network",
        ) from error


def _check_usable(folder: Path) -> None:
    remedy = "name a step-N folder of a run, its hf/, or a Hugging Face model with safetensors"
    if next(folder.glob("*.safetensors"), None) is None:
        raise _initial_error(folder, "holds no safetensors (pickles are not read)", remedy)
    damage = find_damage(folder) if (folder / MANIFEST).is_file() else None
    if damage is not None:
        raise _initial_error(folder, f"is damaged: {damage}", "name another checkpoint")


def _initial_error(source: object, what: str, remedy: str) -> UserError:
    return UserError(what, where=f"checkpoint.initial_load_path {source}", remedy=remedy)
