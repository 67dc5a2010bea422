"""The files of a run folder that describe the run: config.toml and environment.json.

Measurements are written in `metric_logger`.
"""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flame_accel.config import Config, UserError, load_run_file, to_toml
from flame_accel.files import write_json_atomically, write_text_atomically
from flame_accel.observe.metric_logger import flatten_options
from flame_accel.observe.metrics_file import METRICS_FILE

PACKAGES = (
    "torch",
    "triton",
    "flash-linear-attention",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)


def prepare_run_folder_and_list_changes(
    path: Path, *, config: Config, environment: dict[str, Any]
) -> list[str]:
    """Creates the run folder, and config.toml and environment.json in it, on the main process.

    Returns:
        A line for each option that differs from those of the folder's last run.

    Raises:
        UserError: The folder cannot be written to, or holds a run of another model or other data;
            then nothing in it has changed.
    """
    resolved = path / "config.toml"
    try:
        path.mkdir(parents=True, exist_ok=True)
        changes: list[str] = []
        if resolved.exists():
            before = load_run_file(resolved)
            if _has_progress(path, before):
                check_same_model_and_data(before, config)
            changes = describe_changed_options(before, config)
        # a run that is killed here must be able to start again
        write_text_atomically(resolved, to_toml(config))
        write_json_atomically(path / "environment.json", environment, indent=2)
    except OSError as error:
        raise UserError(
            f"the run folder cannot be written to: {error.strerror}",
            where=f"job.dump_folder = {path}",
            remedy="choose a folder that you can write to",
        ) from error
    return changes


def _has_progress(path: Path, config: Config) -> bool:
    """Whether a run in the folder has reported metrics or saved a checkpoint."""
    metrics = path / METRICS_FILE
    checkpoints = path / config.checkpoint.folder
    return (metrics.is_file() and metrics.stat().st_size > 0) or any(checkpoints.glob("step-*"))


def check_same_model_and_data(before: Config, after: Config) -> None:
    """Checks that a run folder is used again for the same model and data.

    A file or folder that only moved, and kept its name, is the same.

    Raises:
        UserError: The run before was of another model, tokenizer or dataset.
    """
    changes = [
        f"{name} was {old or 'none'}, and is now {new or 'none'}"
        for name, old, new in (
            ("model.config", before.model.config, after.model.config),
            ("model.tokenizer_path", before.model.tokenizer_path, after.model.tokenizer_path),
            ("training.dataset", before.training.dataset, after.training.dataset),
            ("training.dataset_name", before.training.dataset_name, after.training.dataset_name),
        )
        if _last_path_parts(old) != _last_path_parts(new)
    ]
    if changes:
        raise UserError(
            f"holds another run: {'; '.join(changes)}",
            where=f"job.dump_folder = {after.job.dump_folder}",
            remedy="choose another job.dump_folder, or repeat the options of that run to resume it",
        )


def _last_path_parts(comma_separated_paths: str | None) -> list[str]:
    """The last part of each of several paths or names, which stays when a file or folder moves."""
    names = []
    for text in (comma_separated_paths or "").split(","):
        path = Path(text.strip())
        # a model config may be named by its folder, its file, or as a preset
        path = path.parent if path.name == "config.json" else path
        names.append(path.name.removesuffix(".json"))
    return names


def describe_changed_options(before: Config, after: Config) -> list[str]:
    """`section.option: old -> new` for every option that differs between two configurations."""
    old, new = flatten_options(asdict(before)), flatten_options(asdict(after))
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in new
        if old[name] != new[name] and name != "job.config_file"
    ]


def describe_environment(accelerator: Accelerator, argv: Sequence[str]) -> dict[str, Any]:
    """What is needed to understand a run later: versions, git commit, devices, command line."""
    return {
        "command": shlex.join([sys.executable, *argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": git_commit_and_dirty(),
        "processes": accelerator.num_processes,
        "engine": accelerator.distributed_type.value,
        "device": device_name(accelerator.device),
        "cuda": torch.version.cuda,
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that results depend on; None if not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def device_name(device: torch.device) -> str:
    """The device's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()


def git_commit_and_dirty() -> dict[str, Any] | None:
    """The source's commit and whether it has uncommitted changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _read_git_output(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_read_git_output(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _read_git_output(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
