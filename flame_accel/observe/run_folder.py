"""The run folder and what describes a run in it: resolved options and environment.

Measurements are not written here but in `records`.
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

from flame_accel.config import Config, UserError, load_file, to_toml
from flame_accel.files import write_json, write_text
from flame_accel.observe.metric_logger import flatten_options

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


def open_run_folder(path: Path, *, config: Config, environment: dict[str, Any]) -> list[str]:
    """Creates the run's folder and writes what the run is into it. For the main process.

    Returns:
        What is different from the run that the folder already holds, a line per option.

    Raises:
        UserError: The folder cannot be written.
    """
    resolved = path / "config.toml"
    try:
        path.mkdir(parents=True, exist_ok=True)
        changes = changed_options(load_file(resolved), config) if resolved.exists() else []
        # a run that is killed here must be able to start again
        write_text(resolved, to_toml(config))
        write_json(path / "environment.json", environment, indent=2)
    except OSError as error:
        raise UserError(
            f"the run folder cannot be written: {error.strerror}",
            where=f"job.dump_folder = {path}",
            remedy="name a folder that you may write to",
        ) from error
    return changes


def changed_options(before: Config, after: Config) -> list[str]:
    """`section.option: old -> new` for every option that two configurations disagree about."""
    old, new = flatten_options(asdict(before)), flatten_options(asdict(after))
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in new
        if old[name] != new[name] and name != "job.config_file"
    ]


def describe_environment(accelerator: Accelerator, argv: Sequence[str]) -> dict[str, Any]:
    """What it takes to understand a run later: versions, source, devices, command line."""
    return {
        "command": shlex.join([sys.executable, *argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": git_revision(),
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
    """The device as its maker names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()


def git_revision() -> dict[str, Any] | None:
    """Commit of the source and whether it was changed since; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
