"""Tuned configurations on disk: one JSON file per kernel, in the format of fla's config cache.

fla reads such files itself (`FLA_CONFIG_DIR` with `FLA_CACHE_MODE=strict`) for the kernels that it
wraps in `fla_cache_autotune`. An entry belongs to a key: the values of the arguments that the
kernel's author named, and the dtypes of all tensors. Which entry a kernel takes is decided in
`tuner`, how far two keys are apart in `nearest`.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from flame_accel.config.errors import UserError
from flame_accel.files import write_json_atomically

COUNTS = frozenset({"B", "N", "NB", "NP", "T"})
"""Key arguments of fla's kernels that count rows, blocks of rows or tokens.

They differ from batch to batch and hardly change which configuration is best, so they are compared
by their next power of two.
"""

Key = Sequence[Any]
KernelConfig = Mapping[str, Any]


class TunedEntry(NamedTuple):
    """One configuration of a kernel and what it was tuned for."""

    key: list[Any]
    """Values of the kernel's key arguments, then the dtypes of all tensors."""
    config: KernelConfig
    """`kwargs`, `num_warps`, `num_stages` and the rest of what Triton's `Config` takes."""


def cache_folder() -> Path:
    """Where what belongs to this user and not to one run is kept: `$FLAME_ACCEL_CACHE`.

    Its default is `flame_accel` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    """
    if named := os.environ.get("FLAME_ACCEL_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flame_accel"


def shipped_folder(capability: str) -> Path:
    """The configurations that come with this package for GPUs of one compute capability."""
    return Path(__file__).parent / "shipped" / capability


def load_entries(folder: Path, kernel: str) -> list[TunedEntry]:
    """Reads all entries of a kernel; none where there is no file for it.

    Raises:
        UserError: The kernel's file does not hold tuned configurations.
    """
    entries = _read_entries(folder / f"{kernel}.json").values()
    return [TunedEntry(entry["autotune_key"], entry["config"]) for entry in entries]


def find_config(folder: Path, kernel: str, names: Sequence[str], key: Key) -> KernelConfig | None:
    """The configuration for `key`, else one for a key whose counts have the same next power of two.

    Args:
        folder: Holds the JSON files.
        kernel: Name of the Triton function.
        names: Names of the arguments at the start of the key; dtypes follow.
        key: Values and dtypes.

    Raises:
        UserError: The kernel's file does not hold tuned configurations.
    """
    wanted = key_as_json(key)
    same_bucket = None
    for entry in load_entries(folder, kernel):
        if entry.key == wanted:
            return entry.config
        if same_bucket is None and _round_counts(names, entry.key) == _round_counts(names, wanted):
            same_bucket = entry.config
    return same_bucket


def save_config(
    folder: Path, kernel: str, key: Key, config: KernelConfig, triton_version: str
) -> None:
    """Adds or replaces one entry; other processes may do the same at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kernel}.json"
    with FileLock(folder / ".lock"):
        entries = dict(_read_entries(path))
        plain = key_as_json(key)
        entry = {"autotune_key": plain, "config": dict(config)}
        if entries.get(hash_key(plain)) == entry:
            return
        entries[hash_key(plain)] = entry
        content = {
            "kernel_name": kernel,
            "triton_version": triton_version,
            "autotune_entries": dict(sorted(entries.items())),
        }
        write_json_atomically(path, content)


def key_as_json(key: Key) -> list[Any]:
    """The key as JSON reads it back: lists for tuples, strings for dtypes."""
    return json.loads(json.dumps(list(key), default=str))


def hash_key(plain: list[Any]) -> str:
    """The name of an entry, computed as fla does, which looks entries up by it."""
    text = json.dumps(plain, separators=(",", ":"), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _read_entries(path: Path) -> Mapping[str, Any]:
    """The entries of a file by their hashes."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["autotune_entries"]
        for entry in entries.values():
            _ = entry["autotune_key"], entry["config"]["kwargs"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "does not hold tuned configurations",
            where=str(path),
            remedy="delete the file; the kernel is then tuned again",
        ) from error
    return entries


def _round_counts(names: Sequence[str], plain: list[Any]) -> list[Any]:
    """The key with `COUNTS` rounded up to powers of two."""
    rounded = list(plain)
    for index, name in enumerate(names):
        if name in COUNTS and index < len(rounded) and type(rounded[index]) is int:
            rounded[index] = 1 << max(rounded[index] - 1, 0).bit_length()
    return rounded
