"""Writes files and folders so that they survive a crash and a power cut; detects damaged files.

New content goes to a temporary name in the same folder, is synced to the disk (fsync) and then
renamed; the folder is synced last. A reader therefore sees the old content or the new one, never a
mixture. Everything the package writes goes through here, except for logs that grow line by line
(metrics.jsonl and others like it, log.txt). What the files mean is up to their owners: checkpoints,
token caches, reports. Standard library only, plus xxhash for the checksums.
"""

import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TypedDict

import xxhash

TEMPORARY_PREFIX = ".tmp-"
"""Start of every temporary name: hidden, so that nothing that lists a folder takes it for real."""
GIT_LFS_FIRST_BYTES = b"version https://git-lfs.github.com/spec/"
GIT_LFS_LARGEST_POINTER = 1024
READ_BLOCK_BYTES = 1 << 22
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""From Linux's fcntl.h and fs.h, for renameat2."""


class FileDescription(TypedDict):
    """What a file must look like to be undamaged."""

    size: int
    """Bytes."""
    xxh3: str
    """XXH3-128 in hexadecimal."""


def write_text_atomically(path: Path, text: str) -> None:
    """Write or replace a UTF-8 text file atomically."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: Path, content: object, *, indent: int = 1) -> None:
    """Write or replace a JSON file atomically."""
    write_text_atomically(path, format_json(content, indent=indent))


def format_json(content: object, *, indent: int = 1) -> str:
    """The text of a JSON file."""
    return json.dumps(content, indent=indent) + "\n"


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write or replace a file atomically."""
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: it takes its name when the block ends without an error.

    A symbolic link stays and its target is replaced; a device or a pipe is written to directly.

    Args:
        path: the file; its folder must exist.

    Yields:
        Where the block must write it: a temporary path in the same folder with the same suffix.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        sync_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_to_disk(path.parent)


@contextmanager
def replace_folder(
    folder: Path, *, is_kept: Callable[[PurePath], bool] | None = None
) -> Iterator[Path]:
    """Write a folder atomically: it takes its name when the block ends without an error.

    Only one process may replace a folder at a time.

    Args:
        folder: the folder; created with its parents, or replaced.
        is_kept: whether a file of the folder that is replaced, by its relative path, stays in it; a
            file that the block writes under the same path wins. None keeps nothing.

    Yields:
        Where the block must write: an empty temporary folder next to it.
    """
    folder = Path(os.path.realpath(folder))
    # not a random name: the next attempt removes what a killed process left, however large
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
    if temporary.is_symlink() or temporary.is_file():
        temporary.unlink()
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync_tree_to_disk(temporary)
        if is_kept is not None and folder.is_dir():
            _link_kept_files(folder, temporary, is_kept)
        _rename_or_swap_keeping_old(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_kept_files(source: Path, target: Path, is_kept: Callable[[PurePath], bool]) -> None:
    """Puts files of one folder into another as well, unless something has their place there."""
    folders = {target}
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        place = target / relative
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder or not is_kept(relative) or os.path.lexists(place):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        folders.add(place.parent)
        if path.is_symlink():
            place.symlink_to(os.readlink(path))
            continue
        try:
            os.link(path, place)
        except OSError:
            # another owner's file, or a filesystem without hard links
            shutil.copy2(path, place)
            sync_to_disk(place)
    for folder in folders:
        sync_to_disk(folder)


def sync_then_rename_or_swap_with_existing(temporary: Path, folder: Path) -> None:
    """Sync a finished temporary folder to the disk and rename it to its final name.

    If `folder` exists, whatever it is, the two are swapped: it is then in the place of `temporary`.
    """
    _sync_tree_to_disk(temporary)
    _rename_or_swap_keeping_old(temporary, folder)


def _sync_tree_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync_to_disk(path)


def _rename_or_swap_keeping_old(temporary: Path, folder: Path) -> None:
    if os.path.lexists(folder):
        _swap_folders_in_one_or_three_renames(temporary, folder)
    else:
        os.rename(temporary, folder)
    sync_to_disk(folder.parent)


def replace_link(link: Path, target: str) -> None:
    """Create or replace a symbolic link atomically.

    Args:
        link: its path; its folder must exist.
        target: what it says, relative to its folder.

    Raises:
        OSError: The filesystem has no links, or something else has the name.
    """
    temporary = link.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{link.name}")
    try:
        temporary.symlink_to(target)
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)
    sync_to_disk(link.parent)


def rename_and_sync(source: Path, target: Path) -> None:
    """Rename a file or folder that is already on the disk, within its folder."""
    os.rename(source, target)
    sync_to_disk(target.parent)


def link_or_copy_file(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy where the filesystem has none; makes the folder."""
    try:
        link_file(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_file(source: Path, target: Path) -> None:
    """Create a hard link to a file; makes the folder.

    Raises:
        OSError: There is no such file, or the filesystem has no hard links.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # a link to a link would point nowhere from another folder
    os.link(source.resolve(strict=True), target)


def has_temporary_name(path: Path) -> bool:
    """Whether a file or folder is one that an interrupted write left behind."""
    return path.name.startswith(TEMPORARY_PREFIX)


def sync_to_disk(path: Path) -> None:
    """Fsync a file's content, or a folder's entries, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network filesystems cannot sync a folder
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


class ChecksummedWriter:
    """Writes a new file block by block and computes its checksum on the way.

    The file has its final name from the start: it counts only once a file written later lists it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = xxhash.xxh3_128()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append a block."""
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def close(self) -> FileDescription:
        """Sync the file to the disk and close it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"size": self._size, "xxh3": self._digest.hexdigest()}


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in a clone where the file itself was not downloaded.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    if path.stat().st_size > GIT_LFS_LARGEST_POINTER:
        return False
    with path.open("rb") as file:
        return file.read(len(GIT_LFS_FIRST_BYTES)) == GIT_LFS_FIRST_BYTES


def bytes_xxh3(content: bytes) -> str:
    """XXH3-128 of bytes, in hexadecimal."""
    return xxhash.xxh3_128(content).hexdigest()


def file_xxh3(path: Path) -> str:
    """XXH3-128 of a file, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, FileDescription]:
    """Size and checksum of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "xxh3": file_xxh3(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def describe_first_damage(
    folder: Path, descriptions: Mapping[str, FileDescription], *, compare_checksums: bool = False
) -> str | None:
    """Compare files with their descriptions; says what is wrong with the first damaged one.

    Args:
        folder: folder of the files.
        descriptions: what `describe_files` returned when they were written.
        compare_checksums: whether to read them and compare checksums too; else only sizes.

    Returns:
        A sentence that names the file; None if all are undamaged.
    """
    for name, expected in descriptions.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"{name} has {size:,} bytes, not {expected['size']:,}"
        if compare_checksums and file_xxh3(path) != expected["xxh3"]:
            return f"{name} has other contents than were written (XXH3-128)"
    return None


def _swap_folders_in_one_or_three_renames(first: Path, second: Path) -> None:
    """Exchange the names of two folders in one step.

    Where the filesystem cannot, in three: killed in between, `second` may be missing and its old
    content lies under a temporary name next to it.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    if renameat2 and renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    aside = second.with_name(f"{TEMPORARY_PREFIX}old-{second.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)
