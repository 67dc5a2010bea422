"""What a checkpoint folder is: the names that count, its manifest, and whether it is intact.

    {"format": 2, "step": 500, "tokens": ..., "files": {name: {size, xxh3}},
     "tensors": {file: {name: "F32 [258, 64]"}}, "xxh3": hash of all of this}

A checkpoint is a folder of the exact name `step-N` that holds the files of its manifest and no
others. Without torch, so that commands answer a mistake at once. Checkpoints are written, chosen
and deleted in `checkpoint/folder`; whether files can be read as a model is told in `model_files`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from flame_accel.config.errors import UserError
from flame_accel.files import (
    bytes_xxh3,
    describe_files,
    describe_first_damage,
    write_json_atomically,
)
from flame_accel.io_errors import is_failed_read, retry_failed_reads
from flame_accel.json_text import parse_json_text
from flame_accel.model_files import find_unreadable_or_missing_model_file

MANIFEST = "manifest.json"
"""Facts, sizes and checksums of a checkpoint, which is complete once it has one."""
FORMAT = 2
"""Version of the manifest; the first one had neither a number, tensors nor a hash of its own."""
STEP_PREFIX = "step-"
TEMPORARY_INFIX = ".tmp-"
"""In the name of a checkpoint that is being written."""
# more digits than any step has are no number that Python reads
STEP_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
TEMPORARY_NAME = re.compile(STEP_NAME.pattern + r"\.tmp-([0-9a-f]{16}|writing)")
"""Before manifests had a format, every start wrote under `step-N.tmp-writing`."""
SET_ASIDE_NAME = re.compile(STEP_NAME.pattern + r"\.[a-z]+-[0-9]+")
CHECKSUM = re.compile(r"[0-9a-f]{32}")
KEYS = {"step", "files", "tokens", "processes", "versions"}
OWN_KEYS = {"format", "tensors", "xxh3"}
"""Of a manifest since format 2."""


class CheckpointEntries(NamedTuple):
    """What lies in a folder of checkpoints, by path."""

    checkpoints: dict[int, Path]
    """Folders that are checkpoints by name, intact or damaged, by step in ascending order."""
    leftovers: list[Path]
    """Temporary folders of saves."""
    passed_over: dict[Path, str]
    """What only looks like a checkpoint, and why it is none."""

    def claims(self) -> dict[Path, str]:
        """Links to checkpoints, which cannot be used themselves, and why."""
        links = [path for path in self.passed_over if STEP_NAME.fullmatch(path.name)]
        return {path: self.passed_over[path] for path in links if (path / MANIFEST).is_file()}


class _DamageError(ValueError):
    """A sentence about what is wrong with a manifest."""


def step_of_checkpoint_name(name: str) -> int | None:
    """The step of a folder's name, `step-N`; None if it is not exactly that."""
    match = STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def has_training_state(checkpoint: Path) -> bool:
    """Whether a checkpoint contains more than the model's weights."""
    return (checkpoint / "data.json").is_file()


def list_checkpoint_entries(folder: Path) -> CheckpointEntries:
    """Tells checkpoints, what saves left behind and what only looks like either; reads names."""
    steps: dict[int, Path] = {}
    found = CheckpointEntries({}, [], {})
    for path in sorted(folder.glob(f"{STEP_PREFIX}*")):
        step, is_temporary = step_of_checkpoint_name(path.name), TEMPORARY_NAME.fullmatch(path.name)
        if SET_ASIDE_NAME.fullmatch(path.name) and not is_temporary:
            continue
        if step is None and not is_temporary:
            found.passed_over[path] = "its name is not that of a checkpoint"
        elif path.is_symlink():
            found.passed_over[path] = "it is a link"
        elif not path.is_dir():
            found.passed_over[path] = "it is not a folder"
        elif step is None:
            found.leftovers.append(path)
        elif not any(path.iterdir()):
            found.passed_over[path] = "it is empty"
        else:
            steps[step] = path
    found.checkpoints.update(sorted(steps.items()))
    return found


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Writes the manifest of a folder whose other files are complete.

    Args:
        folder: Of the checkpoint.
        facts: What it says besides the files, JSON-able: `step`, `tokens` and others.
    """
    described = describe_files(folder)
    content: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "files": described,
        "tensors": {
            name: _read_dtypes_and_shapes(folder / name)
            for name in described
            if name.endswith(".safetensors")
        },
    }
    content["xxh3"] = _hash_of_content(content)
    write_json_atomically(folder / MANIFEST, content)


def find_damage(
    folder: Path, *, step: int | None = None, compare_checksums: bool = True
) -> str | None:
    """What is wrong with a checkpoint, as part of a sentence; None if it is intact.

    Args:
        folder: The checkpoint.
        step: Step that it must be of; None takes any.
        compare_checksums: Whether to read the files, as a start does; else only names and sizes.

    Raises:
        UserError: Another version wrote it, in a format that this one does not know; exit code 2.
        OSError, SafetensorError: A file cannot be read, also after some pauses: that is no damage,
            and nobody knows whether it has one (see `io_errors.is_failed_read`).
    """
    try:
        manifest = retry_failed_reads(lambda: _read_manifest(folder / MANIFEST))
        if step is not None and manifest["step"] != step:
            raise _DamageError(f"its {MANIFEST} is that of step {manifest['step']}")
        retry_failed_reads(lambda: _check_exact_set_of_files(folder, manifest["files"]))
        for name, description in manifest["files"].items():
            check = partial(describe_first_damage, folder, {name: description})
            damage = retry_failed_reads(partial(check, compare_checksums=compare_checksums))
            if damage is not None:
                return damage
        if compare_checksums:
            retry_failed_reads(lambda: _check_tensors_and_counters(folder, manifest))
        return None
    except _DamageError as error:
        return str(error)
    except OSError as error:
        if is_failed_read(error):
            raise
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with the fields of its format and of their types."""
    try:
        content = parse_json_text(path.read_bytes())
    except FileNotFoundError:
        raise _DamageError(f"it has no {MANIFEST}") from None
    except (ValueError, RecursionError):
        raise _DamageError(f"its {MANIFEST} is not JSON") from None
    if not isinstance(content, dict):
        raise _DamageError(f"its {MANIFEST} is no manifest")
    # only of the first format may all be absent: one flipped bit does not hide the others
    if OWN_KEYS & content.keys():
        if content.get("xxh3") != _hash_of_content(content):
            raise _DamageError(f"its {MANIFEST} has other contents than were written (XXH3-128)")
        if content.get("format") != FORMAT:
            raise UserError(
                f"another version of flame_accel wrote it, in format {content.get('format')}; this "
                f"one reads formats up to {FORMAT}",
                where=str(path.parent),
                remedy="use that version, or move the checkpoint away to go back to an older one",
                exit_code=2,
            )
    elif unknown := content.keys() - KEYS:
        raise _DamageError(f"its {MANIFEST} has an unknown entry, {min(unknown)}")
    if not _has_step_and_files(content):
        raise _DamageError(f"its {MANIFEST} says no step or no files")
    return content


def _has_step_and_files(content: Mapping[str, Any]) -> bool:
    described = content.get("files")
    return (
        type(content.get("step")) is int
        and isinstance(described, dict)
        and bool(described)
        and all(
            isinstance(each, dict)
            and each.keys() == {"size", "xxh3"}
            and type(each["size"]) is int
            and isinstance(each["xxh3"], str)
            and CHECKSUM.fullmatch(each["xxh3"])
            for each in described.values()
        )
    )


def _hash_of_content(content: Mapping[str, object]) -> str:
    """XXH3-128 of what a manifest says, however it is laid out."""
    others = {key: value for key, value in content.items() if key != "xxh3"}
    return bytes_xxh3(json.dumps(others, sort_keys=True).encode())


def _check_exact_set_of_files(folder: Path, described: Mapping[str, object]) -> None:
    """What is not listed might be loaded as well, and would hide what is."""
    missing = {*described, MANIFEST}
    for entry in _walk_without_following_links(folder):
        name = Path(entry.path).relative_to(folder).as_posix()
        if not entry.is_file(follow_symlinks=False):
            raise _DamageError(f"{name} is a link or no file")
        if name not in missing:
            raise _DamageError(f"{name} was not saved with it; without that file it can be used")
        missing.remove(name)
    if missing:
        raise _DamageError(f"{min(missing)} is missing")


def _walk_without_following_links(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is not a folder itself."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk_without_following_links(Path(entry.path))
            else:
                yield entry


def _check_tensors_and_counters(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Checks that the files mean what the manifest says; their contents are those written."""
    problem = find_unreadable_or_missing_model_file(folder)
    if problem is not None:
        raise _DamageError(problem.what)
    for file, described in manifest.get("tensors", {}).items():
        try:
            tensors = _read_dtypes_and_shapes(folder / file)
        except SafetensorError as error:
            if is_failed_read(error):
                raise
            raise _DamageError(f"{file} is not a safetensors file ({error})") from None
        if tensors != described:
            raise _DamageError(f"{file} has other tensors than its {MANIFEST} says")
    for file in sorted(folder.glob("*.json")):
        try:
            content = parse_json_text(file.read_bytes())
        except (ValueError, RecursionError):
            raise _DamageError(f"{file.name} is not JSON") from None
        if file.name == "state.json":
            for name in ("step", "tokens"):
                if not isinstance(content, dict) or content.get(name) != manifest.get(name):
                    raise _DamageError(f"{file.name} has another {name} than its {MANIFEST}")


def _read_dtypes_and_shapes(file: Path) -> dict[str, str]:
    """`F32 [rows, columns]` of each tensor of a safetensors file, by name."""
    with safe_open(file, framework="numpy") as tensors:
        slices = {name: tensors.get_slice(name) for name in sorted(tensors.keys())}
        return {name: f"{each.get_dtype()} {each.get_shape()}" for name, each in slices.items()}
