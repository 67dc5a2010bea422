"""Whether a folder's safetensors can be read at all, told before anything is built.

Whether they belong to the model is decided in `identity`; tensors are read in `tensor_storage`.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from flame_accel.files import is_git_lfs_pointer

WEIGHTS_INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, of a model whose weights are in several files."""


def describe_unreadable_weights(folder: Path) -> tuple[str, str] | None:
    """The problem with the first unreadable file of weights, and its remedy; None if there is none.

    Found are pointers that Git LFS did not replace by their files, files that are cut or not
    safetensors, and shards that the index names and that are missing. Only headers and sizes are
    read.
    """
    for file in sorted(folder.glob("*.safetensors")):
        if is_git_lfs_pointer(file):
            return f"{file.name} is a Git LFS pointer, not the weights", "run `git lfs pull` there"
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return (
                f"{file.name} is cut, damaged or not a safetensors file ({error})",
                "copy or download it again",
            )
    missing = [name for name in _shards_of_index(folder) if not (folder / name).is_file()]
    if missing:
        return (
            f"{len(missing)} files that {WEIGHTS_INDEX} names are missing, such as {missing[0]}",
            "copy or download the folder again",
        )
    return None


def _shards_of_index(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
