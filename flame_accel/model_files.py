"""Folders that hold a model: whether their files are whole, told before anything is built.

Without torch, so that commands answer a mistake at once. What a checkpoint folder is stands in
`checkpoint_files`; whether weights belong to a model is decided in `checkpoint/identity`.
"""

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from flame_accel.files import is_git_lfs_pointer
from flame_accel.io_errors import is_failed_read
from flame_accel.json_text import parse_json_text

MODEL_CONFIG = "config.json"
WEIGHTS_INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, of a model whose weights are in several files."""
TEXT_PATTERNS = (
    MODEL_CONFIG,
    "generation_config.json",
    WEIGHTS_INDEX,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
)
"""Files of config and tokenizer; those that end in .json hold JSON."""


class FileProblem(NamedTuple):
    """What is wrong with a file, and what to do about it."""

    what: str
    remedy: str


def find_unreadable_or_missing_model_file(folder: Path) -> FileProblem | None:
    """The first problem that makes a model in the Hugging Face format unreadable; None if it is.

    Found are pointers that Git LFS did not replace by their files, JSON that is none, weights that
    are cut, missing or not safetensors. Of weights only headers and sizes are read.

    Raises:
        OSError, SafetensorError: A file cannot be read (`io_errors.is_failed_read`).
    """
    problem = find_unreadable_text_file(folder)
    if problem is not None:
        return problem
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return FileProblem(
            "contains no safetensors (pickles are not read)",
            "choose a step-N folder of a run, its hf/, or a Hugging Face model with safetensors",
        )
    # of a full checkpoint, whose optimizer may be loaded as well
    for file in [*weights, *sorted(folder.glob("optimizer/*.safetensors"))]:
        if is_git_lfs_pointer(file):
            return _git_lfs_problem(file)
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            if is_failed_read(error):
                raise
            return FileProblem(
                f"{file.name} is cut, damaged or not a safetensors file ({error})",
                "copy or download it again",
            )
    missing = [
        name for name in shard_names_in_index_or_empty(folder) if not (folder / name).is_file()
    ]
    if missing:
        return FileProblem(
            f"{len(missing)} files that {WEIGHTS_INDEX} names are missing, such as {missing[0]}",
            "copy or download the folder again",
        )
    return None


def find_unreadable_text_file(folder: Path) -> FileProblem | None:
    """The first problem that makes a config or tokenizer unreadable; None if there is none."""
    for pattern in TEXT_PATTERNS:
        for file in sorted(folder.glob(pattern)):
            problem = _find_lfs_or_json_problem(file) if file.is_file() else None
            if problem is not None:
                return problem
    return None


def _find_lfs_or_json_problem(file: Path) -> FileProblem | None:
    if is_git_lfs_pointer(file):
        return _git_lfs_problem(file)
    if file.suffix != ".json":
        return None
    try:
        is_object = isinstance(parse_json_text(file.read_bytes()), dict)
        reason = "it holds no JSON object"
    except (ValueError, OSError) as error:
        if is_failed_read(error):
            raise
        is_object, reason = False, str(error)
    if is_object:
        return None
    return FileProblem(
        f"{file.name} is cut, damaged or not JSON ({reason})", "copy or download it again"
    )


def _git_lfs_problem(file: Path) -> FileProblem:
    return FileProblem(
        f"{file.name} is a Git LFS pointer, not the file itself", "run `git lfs pull` there"
    )


def shard_names_in_index_or_empty(folder: Path) -> list[str]:
    """The files that the index of a folder names; none without an index, or with a damaged one."""
    try:
        index = parse_json_text((folder / WEIGHTS_INDEX).read_bytes())
        return sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
