"""Files that outlive a loss of power, and how to see later that they did: fsync, sizes, checksums.

Token caches and checkpoints are made of such files; what lies in them is theirs to say.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

HASH_BLOCK_BYTES = 1 << 22


def file_checksum(path: Path) -> str:
    """XXH3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and XXH3-128 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "xxh3": file_checksum(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def find_damage(folder: Path, files: Mapping[str, Any], *, content: bool = False) -> str | None:
    """What is wrong with files, by their sizes and, if asked for, their contents; or None.

    Args:
        folder: where they lie.
        files: as of `describe_files`.
        content: whether to read them.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"{name} has {size:,} bytes, not {expected['size']:,}"
        if content and file_checksum(path) != expected["xxh3"]:
            return f"{name} has other contents than were written (XXH3-128)"
    return None


def write_json(path: Path, content: Any) -> None:
    """Write a file that is there whole or not at all, and outlives a loss of power."""
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's contents, or the names in a folder, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
