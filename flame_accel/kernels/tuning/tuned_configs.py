"""Tuned configurations on disk: one JSON file per kernel, in the format of fla's config cache.

fla reads such files itself (`FLA_CONFIG_DIR` with `FLA_CACHE_MODE=strict`) for the kernels that it
wraps in `fla_cache_autotune`. Tuning itself lives in `tuner`. An entry belongs to a key: the values
of the arguments that the kernel's author named, and the dtypes of all tensors.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from flame_accel.config.errors import UserError
from flame_accel.files import write_json

COUNTS = frozenset({"B", "N", "NB", "NP", "T"})
"""Key arguments of fla's kernels that count rows, blocks of rows or tokens.

They differ from batch to batch and hardly change which configuration is best, so they are compared
by their next power of two.
"""

Key = Sequence[Any]
KernelConfig = Mapping[str, Any]


def cache_folder() -> Path:
    """Where what belongs to this user and not to one run is kept: `$FLAME_ACCEL_CACHE`.

    Its default is `flame_accel` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    """
    if named := os.environ.get("FLAME_ACCEL_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flame_accel"


def shipped_folder(gpu: str) -> Path:
    """The configurations that come with this package for a GPU, named as fla names it."""
    return Path(__file__).parent / "shipped" / gpu


def find(folder: Path, kernel: str, names: Sequence[str], key: Key) -> KernelConfig | None:
    """The entry for `key`, else one whose counts have the same next power of two.

    Args:
        folder: Of the files.
        kernel: Name of the Triton function.
        names: Of the arguments at the start of the key; dtypes follow.
        key: Values and dtypes.

    Raises:
        UserError: The kernel's file is no such file.
    """
    wanted = _plain(key)
    near = None
    for entry in _read(folder / f"{kernel}.json").values():
        if entry["autotune_key"] == wanted:
            return entry["config"]
        if near is None and _bucket(names, entry["autotune_key"]) == _bucket(names, wanted):
            near = entry["config"]
    return near


def write(folder: Path, kernel: str, key: Key, config: KernelConfig, triton_version: str) -> None:
    """Adds or replaces one entry; other processes may do the same at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kernel}.json"
    with FileLock(folder / ".lock"):
        entries = dict(_read(path))
        plain = _plain(key)
        entry = {"autotune_key": plain, "config": dict(config)}
        if entries.get(_hash(plain)) == entry:
            return
        entries[_hash(plain)] = entry
        content = {
            "kernel_name": kernel,
            "triton_version": triton_version,
            "autotune_entries": dict(sorted(entries.items())),
        }
        write_json(path, content)


def _read(path: Path) -> Mapping[str, Any]:
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


def _plain(key: Key) -> list[Any]:
    """The key as JSON reads it back."""
    return json.loads(json.dumps(list(key), default=str))


def _hash(plain: list[Any]) -> str:
    """As fla computes it, which finds entries by it."""
    text = json.dumps(plain, separators=(",", ":"), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _bucket(names: Sequence[str], plain: list[Any]) -> list[Any]:
    bucketed = list(plain)
    for index, name in enumerate(names):
        if name in COUNTS and index < len(bucketed) and type(bucketed[index]) is int:
            bucketed[index] = 1 << max(bucketed[index] - 1, 0).bit_length()
    return bucketed
