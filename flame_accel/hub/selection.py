"""Which files of an export or a checkpoint are uploaded: the model, never the state of training.

Without torch, so that `flame-accel push` answers a mistake at once. What is added to them is made
in `contents`.
"""

import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from flame_accel import files
from flame_accel.config import UserError
from flame_accel.model_files import MANIFEST, TEMPORARY_INFIX, find_unreadable_model_file

CONFIG_FILE = "config.toml"
"""File that makes a folder one of a run."""
CHECKPOINT_ONLY = (MANIFEST, "state.json", "data.json", "ranks.json", "rank-*.json")
"""Files of a checkpoint, in addition to those in subfolders, that are not part of the model."""
TRAINING_STATE = ("optimizer*", "scheduler*", "trainer_state*", "training_args*", "rng_state*",
                  "*.pt", "*.pth", "*.ckpt", "*.distcp")  # fmt: skip
"""Files that hold more than a model wherever they lie; the last ones are pickles."""


class SelectedFiles(NamedTuple):
    """Which files of a folder are uploaded."""

    files: list[str]
    """Paths relative to the folder, in alphabetical order."""
    left_out: list[str]
    """Files that are not uploaded although a user might expect it."""


def has_checkpoint_manifest(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, rather than an exported model."""
    return (folder / MANIFEST).is_file()


def select_model_files(folder: Path) -> SelectedFiles:
    """The files of a checkpoint or exported model that are part of the model.

    Raises:
        UserError: The folder holds no model in the Hugging Face format.
    """
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if has_checkpoint_manifest(folder):
        chosen = [
            path
            for path in visible
            if len(path.parts) == 1 and not _matches_any_pattern(path.name, CHECKPOINT_ONLY)
        ]
        left_out: list[PurePath] = []
    else:
        left_out = [
            path
            for path in visible
            if any(_matches_any_pattern(part, TRAINING_STATE) for part in path.parts)
        ]
        chosen = [path for path in visible if path not in left_out]
    names = [path.as_posix() for path in chosen]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            "holds no model: it needs config.json and safetensors",
            where=str(folder),
            remedy="choose a run folder, its hf/, one of its step-N folders, or an exported model",
        )
    return SelectedFiles(names, [path.as_posix() for path in left_out])


def check_and_select_model_files(folder: Path) -> SelectedFiles:
    """Checks that a folder holds a whole model; returns what of it is uploaded.

    Raises:
        UserError: It does not, or is what an interrupted save has left.
    """
    selected = select_model_files(folder)
    remedy = "choose a run folder, its hf/, one of its step-N folders, or an exported model"
    if TEMPORARY_INFIX in folder.name:
        what = "is not complete: saving it was interrupted"
        raise UserError(what, where=str(folder), remedy=remedy)
    unreadable = find_unreadable_model_file(folder)
    if unreadable is not None:
        raise UserError(unreadable.what, where=str(folder), remedy=unreadable.remedy)
    return selected


def checksum_of_model_files(folder: Path, suffix: str = "") -> str:
    """A checksum of the files of a model that are uploaded, as they are in its folder.

    Args:
        folder: Of the model.
        suffix: Only of files whose names end with it.
    """
    chosen = [name for name in select_model_files(folder).files if name.endswith(suffix)]
    checksums = {name: files.file_checksum(folder / name) for name in chosen}
    return files.bytes_checksum(json.dumps(checksums, sort_keys=True).encode())


def find_run_folder_of_model(folder: Path) -> Path | None:
    """The run folder that an export or a checkpoint lies in; None if there is none."""
    parents = folder.resolve().parents
    for parent in parents if has_checkpoint_manifest(folder) else parents[:1]:
        if (parent / CONFIG_FILE).is_file():
            return parent
    return None


def _matches_any_pattern(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
