"""Whether a folder's safetensors can be read at all, told before anything is built.

Whether they belong to the model is decided in `identity`; tensors are read in `tensor_storage`.
"""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from flame_accel.files import is_git_lfs_pointer

WEIGHTS_INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, of a model whose weights are in several files."""


class FileProblem(NamedTuple):
    """What is wrong with a file, and what to do about it."""

    what: str
    remedy: str


def find_unreadable_weights(folder: Path) -> FileProblem | None:
    """The first problem that makes the weights of a folder unreadable; None if there is none.

    Found are pointers that Git LFS did not replace by their files, files that are cut or not
    safetensors, and shards that the index names and that are missing. Only headers and sizes are
    read.
    """
    for file in sorted(folder.glob("*.safetensors")):
        if is_git_lfs_pointer(file):
            return FileProblem(
                f"{file.name} is a Git LFS pointer, not the weights", "run `git lfs pull` there"
            )
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return FileProblem(
                f"{file.name} is cut, damaged or not a safetensors file ({error})",
                "copy or download it again",
            )
    missing = [
        name for name in _shard_names_in_index_or_empty(folder) if not (folder / name).is_file()
    ]
    if missing:
        return FileProblem(
            f"{len(missing)} files that {WEIGHTS_INDEX} names are missing, such as {missing[0]}",
            "copy or download the folder again",
        )
    return None


def _shard_names_in_index_or_empty(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
