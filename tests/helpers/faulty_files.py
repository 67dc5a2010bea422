"""A disk that fails: calls on files below a folder raise ENOSPC, EIO or another error.

Seen are Python's own calls and the file that safetensors writes, not those of other native code.
"""

import builtins
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
from safetensors import SafetensorError

AUDITED = {
    "open": "open",
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.rmdir": "rmdir",
    "os.mkdir": "mkdir",
    "os.link": "link",
}
"""Python's audit events, by the calls that they stand for; they come before the call."""


class FaultyFiles:
    """Counts the calls on files below a folder, and makes some of them fail.

    Args:
        folder: Only calls on paths below it count.
        fails: Whether a call fails, by its number from 0 and its text, such as `fsync a/b`.
        error: Number of the error, such as `errno.ENOSPC`.

    Attributes:
        calls: The text of every call so far.
        failed: The text of those that failed.
    """

    def __init__(self, folder: Path, fails: Callable[[int, str], bool], error: int) -> None:
        self.folder = os.path.realpath(folder)
        self.fails, self.error = fails, error
        self.calls: list[str] = []
        self.failed: list[str] = []

    def is_below(self, path: str) -> bool:
        return path.startswith(self.folder + os.sep)

    def count_or_raise(self, call: str, path: str) -> None:
        if not self.is_below(path):
            return
        # temporary folders of checkpoints have other names at each start
        name = re.sub(r"\.tmp-[0-9a-f]{16}", ".tmp-writing", os.path.relpath(path, self.folder))
        text = f"{call} {name}"
        self.calls.append(text)
        if self.fails(len(self.calls) - 1, text):
            self.failed.append(text)
            raise OSError(self.error, os.strerror(self.error), path)


_active: FaultyFiles | None = None
_is_hook_installed = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """A hook cannot be removed; it does nothing where no faults are active."""
    if _active is None or event not in AUDITED:
        return
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    # of shutil.rmtree: a name in an open folder
    folder_descriptor = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}.get(event)
    parent = arguments[folder_descriptor] if folder_descriptor else -1
    text = os.fsdecode(path)
    if parent not in (-1, None):
        text = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), text)
    _active.count_or_raise(AUDITED[event], os.path.abspath(text))


class _CountedFile(io.FileIO):
    """A file whose writes are counted, and may fail."""

    def write(self, data: Any, /) -> int:
        if _active is not None:
            _active.count_or_raise("write", os.path.abspath(os.fsdecode(self.name)))
        return super().write(data) or 0


@contextmanager
def faulty_files(
    folder: Path, fails: Callable[[int, str], bool], *, error: int
) -> Iterator[FaultyFiles]:
    """In the block, calls on files below `folder` fail where `fails` says so; see `FaultyFiles`."""
    global _active, _is_hook_installed
    if not _is_hook_installed:
        sys.addaudithook(_audit)
        _is_hook_installed = True
    faults = FaultyFiles(folder, fails, error)
    real_open, real_fsync, real_write = io.open, os.fsync, os.write
    real_serialize = safetensors.torch.serialize_file

    def open_counted(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **options: Any,
    ) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if isinstance(file, int) or not writes or not faults.is_below(os.path.abspath(file)):
            return real_open(file, mode, buffering, encoding, errors, newline, **options)
        raw = _CountedFile(file, mode.replace("b", "").replace("t", ""), **options)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def fsync(descriptor: int) -> None:
        faults.count_or_raise("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def write(descriptor: int, data: bytes) -> int:
        faults.count_or_raise("write", os.readlink(f"/proc/self/fd/{descriptor}"))
        return real_write(descriptor, data)

    def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        try:
            faults.count_or_raise("write", os.path.abspath(filename))
        except OSError as failure:
            # what it has written by then stays
            Path(filename).write_bytes(b"torn")
            raise SafetensorError(
                f"Error while serializing: I/O error: {failure.strerror} (os error {error})"
            ) from None
        real_serialize(tensors, filename, metadata)

    with (
        mock.patch.object(io, "open", open_counted),
        mock.patch.object(builtins, "open", open_counted),
        mock.patch.object(os, "fsync", fsync),
        mock.patch.object(os, "write", write),
        mock.patch.object(safetensors.torch, "serialize_file", serialize_file),
    ):
        _active = faults
        try:
            yield faults
        finally:
            _active = None
