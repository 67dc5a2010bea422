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
from flame_accel.json_text import parse_json_text

COUNTS = frozenset({"B", "N", "NB", "NP", "T"})
"""Key arguments of fla's kernels that count rows, blocks of rows or tokens.

They differ from batch to batch and hardly change which configuration is best, so they are compared
by their next power of two.
"""

Key = Sequence[Any]
"""Values of the kernel's key arguments, then the dtypes of all tensors."""
JsonKey = list[Any]
"""A `Key` as JSON reads it back."""
KernelConfig = Mapping[str, Any]
EntriesByHash = Mapping[str, Any]
"""What a file holds for each `hash_json_key`: the key and its `KernelConfig`."""

TritonConfig = Any
"""`triton.Config`, which is not installed everywhere."""
TritonAutotuner = Any
"""`triton.runtime.autotuner.Autotuner`."""


class TunedEntry(NamedTuple):
    """One configuration of a kernel and what it was tuned for."""

    key: JsonKey
    config: KernelConfig
    """`kwargs`, `num_warps`, `num_stages` and the rest of what Triton's `Config` takes."""


def flame_accel_cache_folder() -> Path:
    """Where what belongs to this user and not to one run is kept: `$FLAME_ACCEL_CACHE`.

    Its default is `flame_accel` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    """
    if named := os.environ.get("FLAME_ACCEL_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flame_accel"


def shipped_configs_folder(capability: str) -> Path:
    """The configurations that come with this package for GPUs of one compute capability."""
    return Path(__file__).parent / "shipped" / capability


def load_tuned_entries_or_raise_if_malformed(folder: Path, kernel_name: str) -> list[TunedEntry]:
    """Reads all entries of a kernel; none where there is no file for it.

    Raises:
        UserError: The kernel's file does not hold tuned configurations.
    """
    entries = _read_entries_or_raise_if_malformed(folder / f"{kernel_name}.json").values()
    return [TunedEntry(entry["autotune_key"], entry["config"]) for entry in entries]


def find_exact_or_rounded_config(
    folder: Path, kernel_name: str, key_argument_names: Sequence[str], key: Key
) -> KernelConfig | None:
    """The configuration for `key`, else one for a key whose counts have the same next power of two.

    Args:
        folder: Holds the JSON files.
        kernel_name: Name of the Triton function.
        key_argument_names: Names of the arguments at the start of the key; dtypes follow.
        key: Values and dtypes.

    Raises:
        UserError: The kernel's file does not hold tuned configurations.
    """
    json_key = key_to_json_list(key)
    same_bucket = None
    for entry in load_tuned_entries_or_raise_if_malformed(folder, kernel_name):
        if entry.key == json_key:
            return entry.config
        if same_bucket is None and _round_up_count_arguments(
            key_argument_names, entry.key
        ) == _round_up_count_arguments(key_argument_names, json_key):
            same_bucket = entry.config
    return same_bucket


def save_tuned_config(
    folder: Path, kernel_name: str, key: Key, config: KernelConfig, triton_version: str
) -> None:
    """Adds or replaces one entry; other processes may do the same at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kernel_name}.json"
    with FileLock(folder / ".lock"):
        entries = dict(_read_entries_or_raise_if_malformed(path))
        json_key = key_to_json_list(key)
        entry = {"autotune_key": json_key, "config": dict(config)}
        if entries.get(hash_json_key(json_key)) == entry:
            return
        entries[hash_json_key(json_key)] = entry
        content = {
            "kernel_name": kernel_name,
            "triton_version": triton_version,
            "autotune_entries": dict(sorted(entries.items())),
        }
        write_json_atomically(path, content)


def key_to_json_list(key: Key) -> JsonKey:
    """The key as JSON reads it back: lists for tuples, strings for dtypes."""
    return json.loads(json.dumps(list(key), default=str))


def hash_json_key(json_key: JsonKey) -> str:
    """The name of an entry, computed as fla does, which looks entries up by it."""
    text = json.dumps(json_key, separators=(",", ":"), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _read_entries_or_raise_if_malformed(path: Path) -> EntriesByHash:
    """The entries of a file by their hashes."""
    if not path.is_file():
        return {}
    try:
        entries = parse_json_text(path.read_bytes())["autotune_entries"]
        for entry in entries.values():
            _ = entry["autotune_key"], entry["config"]["kwargs"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "does not hold tuned configurations",
            where=str(path),
            remedy="delete the file; the kernel is then tuned again",
        ) from error
    return entries


def _round_up_count_arguments(key_argument_names: Sequence[str], json_key: JsonKey) -> JsonKey:
    """The key with `COUNTS` rounded up to powers of two."""
    rounded = list(json_key)
    for index, name in enumerate(key_argument_names):
        if name in COUNTS and index < len(rounded) and type(rounded[index]) is int:
            rounded[index] = 1 << max(rounded[index] - 1, 0).bit_length()
    return rounded
