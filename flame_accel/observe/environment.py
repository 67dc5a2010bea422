"""What a run is made with, as environment.json records it: versions, git commit, device, command.

It is written by `run_folder`, which adds the starts of the run.
"""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flame_accel import __version__
from flame_accel.config.secrets import mask_secrets
from flame_accel.kernels import active_kernel_packages

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
    "tilelang",
)


def describe_environment(accelerator: Accelerator, argv: Sequence[str]) -> dict[str, Any]:
    """What is needed to understand a run later: versions, git commit, devices, command line."""
    return {
        "command": mask_secrets(shlex.join([sys.executable, *argv])),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"flame_accel": __version__} | package_versions(),
        "kernel_packages": active_kernel_packages(),
        "git": git_commit_and_dirty(),
        "processes": accelerator.num_processes,
        "engine": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
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


def git_commit_and_dirty() -> dict[str, str | bool] | None:
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
