"""Whether a folder can be this run's, and the files that describe the run in it.

These are config.toml and environment.json, which `environment` describes and whose list of starts
is made in `starts`. How the run ended is in `run_end`; measurements are written in `metric_logger`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flame_accel.config import CheckpointConfig, Config, UserError, to_toml
from flame_accel.files import write_json_atomically, write_text_atomically
from flame_accel.kernels import active_kernel_packages
from flame_accel.observe.console import (
    add_log_file_with_earlier_lines,
    get_logger,
)
from flame_accel.observe.environment import describe_environment
from flame_accel.observe.evaluations_file import delete_evaluations_after
from flame_accel.observe.metrics_file import METRICS_FILE, delete_records_after
from flame_accel.observe.places import check_places_of_outputs
from flame_accel.observe.run_end import ENDED_FILE
from flame_accel.observe.starts import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    OptionValue,
    flat_options,
    list_changed_kernel_packages,
    list_kept_starts_and_this_one,
    move_damaged_records_aside,
    read_options_of_last_start,
)
from flame_accel.parallel import run_on_main_and_broadcast

SAME_IN_A_RUN = (
    "model.config",
    "model.tokenizer_path",
    "training.dataset",
    "training.dataset_name",
)
"""Options that make a run; another one belongs into another folder."""
DESCRIBE_START = (
    "packages",
    "kernel_packages",
    "git",
    "processes",
    "engine",
    "mixed_precision",
    "device",
    "cuda",
)
"""Entries of `describe_environment` that may differ from one start of a run to the next."""


def check_run_folder_and_log_changes(
    accelerator: Accelerator, run_folder: Path, config: Config
) -> None:
    """Checks that a folder can be this run's, and logs what changed; reads only.

    Every rank must call it.

    Raises:
        UserError: The folder holds a run of another model or other data.
    """
    for change in run_on_main_and_broadcast(
        accelerator, lambda: check_run_folder_and_list_changes(run_folder, config)
    ):
        get_logger().info("changed since the last start: %s", change)


def log_changed_kernel_packages(accelerator: Accelerator, run_folder: Path) -> None:
    """Warns of kernels that are another package's, or version's, than at the last start.

    The main process reads and logs. Numbers may then differ in their last bits.
    """
    if accelerator.is_main_process:
        for change in list_changed_kernel_packages(run_folder, active_kernel_packages()):
            get_logger().warning("changed since the last start: kernels: %s", change)


def check_run_folder_and_list_changes(run_folder: Path, config: Config) -> list[str]:
    """Checks that a folder can be this run's; reads only.

    Returns:
        A line for each option that differs from those of the folder's last start.

    Raises:
        UserError: The folder holds a run of another model or other data.
    """
    check_places_of_outputs(run_folder, config)
    if not (run_folder / CONFIG_FILE).exists():
        return []
    before, now = read_options_of_last_start(run_folder), flat_options(config)
    if before and _has_metrics_or_checkpoints(run_folder, before):
        check_same_model_and_data(before, now)
    return describe_changed_options(before, now)


def write_run_description_and_open_log(
    accelerator: Accelerator,
    run_folder: Path,
    config: Config,
    *,
    step: int,
    model_sources: Mapping[str, Any],
) -> None:
    """Starts to write to a run folder, once nothing can refuse the start any more.

    Called by the main process, which writes the log too from here on. Records of steps that are
    made again are deleted.

    Args:
        accelerator: The run's accelerator.
        run_folder: Created if it does not exist.
        config: The options.
        step: Number of completed steps.
        model_sources: Data and, if it has any, the weights that the model starts from.

    Raises:
        UserError: The folder cannot be written to.
    """
    environment = describe_environment(accelerator, sys.argv)
    start = {name: environment[name] for name in DESCRIBE_START} | dict(model_sources)
    environment["starts"] = list_kept_starts_and_this_one(
        run_folder, config, step=step, environment=start
    )
    write_config_environment_and_clear_ended(run_folder, config, environment)
    delete_records_after(run_folder / METRICS_FILE, step)
    delete_evaluations_after(run_folder, step)
    add_log_file_with_earlier_lines(run_folder / "log.txt")


def write_config_environment_and_clear_ended(
    run_folder: Path, config: Config, environment_with_starts: Mapping[str, Any]
) -> None:
    """Creates the run folder with config.toml and environment.json; the run has not ended.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        move_damaged_records_aside(run_folder, ENDED_FILE)
        (run_folder / ENDED_FILE).unlink(missing_ok=True)
        write_text_atomically(run_folder / CONFIG_FILE, to_toml(config))
        write_json_atomically(run_folder / ENVIRONMENT_FILE, environment_with_starts, indent=2)
    except OSError as error:
        raise UserError(
            f"the run folder cannot be written to: {error.strerror}",
            where=f"job.dump_folder = {run_folder}",
            remedy="choose a folder that you can write to",
        ) from error


def _has_metrics_or_checkpoints(run_folder: Path, options: Mapping[str, OptionValue]) -> bool:
    """Whether a run in the folder has reported metrics or saved a checkpoint."""
    metrics = run_folder / METRICS_FILE
    checkpoints = run_folder / str(options.get("checkpoint.folder", CheckpointConfig().folder))
    return (metrics.is_file() and metrics.stat().st_size > 0) or any(checkpoints.glob("step-*"))


def check_same_model_and_data(
    before: Mapping[str, OptionValue], after: Mapping[str, OptionValue]
) -> None:
    """Checks that a run folder is used again for the same model and data.

    A file or folder that only moved, and kept its name, is the same.

    Raises:
        UserError: The run before was of another model, tokenizer or dataset.
    """
    changes = [
        f"{name} was {before.get(name, 'none')}, and is now {after[name]}"
        for name in SAME_IN_A_RUN
        if _names_without_folders_and_json_suffix(str(before.get(name, "none")))
        != _names_without_folders_and_json_suffix(str(after[name]))
    ]
    if changes:
        raise UserError(
            f"holds another run: {'; '.join(changes)}",
            where=f"job.dump_folder = {after['job.dump_folder']}",
            remedy="choose another job.dump_folder, or repeat the options of that run to resume it",
        )


def _names_without_folders_and_json_suffix(comma_separated_paths: str) -> list[str]:
    """The last part of each of several paths or names, which stays when a file or folder moves."""
    names = []
    for text in comma_separated_paths.split(","):
        path = Path(text.strip())
        # a model config may be named by its folder, its file, or as a preset
        path = path.parent if path.name == "config.json" else path
        names.append(path.name.removesuffix(".json"))
    return names


def describe_changed_options(
    before: Mapping[str, OptionValue], after: Mapping[str, OptionValue]
) -> list[str]:
    """`section.option: old -> new` for every option that differs between two starts.

    An option that only one of them knows is another version's.
    """
    changes = []
    for name in {**after, **before}:
        if name not in after:
            changes.append(f"{name}: {before[name]} -> unknown to this version, and passed over")
        elif name in before and before[name] != after[name] and name != "job.config_file":
            changes.append(f"{name}: {before[name]} -> {after[name]}")
    return changes
