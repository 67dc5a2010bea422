"""Bytes of a file, wherever it lies: local paths and URLs of any ``fsspec`` protocol, decompressed.

A remote read that fails is tried again, from the byte where it failed. What the bytes mean is no
matter here.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO, RawIOBase
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from flame_accel.config.errors import UserError
from flame_accel.data.sources.files import file_compression

RETRIES = 5
"""How often a remote read is tried again where it fails."""
FIRST_PAUSE_SECONDS = 1.0
"""Before the first of them; each further pause is twice as long."""
CHUNK_BYTES = 1 << 20
CAREFUL_BYTES = 2 * CHUNK_BYTES

sleep = time.sleep
logger = logging.getLogger(__name__)
T = TypeVar("T")


class Unreachable(OSError):
    """A remote file that could not be read, however often it was tried."""


class Opened(NamedTuple):
    """An open file; decompressed, if its name says that it is compressed."""

    stream: Any
    """Has `read` and `seek` of a binary file."""
    seekable: bool
    """Whether reading from a place on costs nothing for what is before it."""


@contextmanager
def open_file(file: str) -> Iterator[Opened]:
    """Open a file for reading from its start.

    Raises:
        OSError: as reading it does.
    """
    compression = file_compression(file)
    raw = RemoteFile(file) if _is_remote(file) else BufferedReader(FileIO(file))
    with raw:
        if compression is None:
            yield Opened(raw, raw.seekable())
            return
        source: Any = pa.PythonFile(raw, mode="r")
        with pa.CompressedInputStream(source, compression) as stream:
            yield Opened(stream, False)


@contextmanager
def open_seekable(file: str) -> Iterator[Any]:
    """Open a file for reading here and there: copied to the disk where there is no other way."""
    with open_file(file) as opened:
        if opened.seekable:
            yield opened.stream
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(opened.stream, copy, CHUNK_BYTES)
            copy.seek(0)
            yield copy


def chunks_from(opened: Opened, head: bytes, place: int, careful: bool = False) -> Iterator[bytes]:
    """Bytes from a place on, in pieces.

    Args:
        opened: the file ...
        head: ... of which this was read already.
        place: offset of the first byte wanted.
        careful: a read that fails takes the whole piece with it, though some of it may have been
            decompressed. Begin with single bytes, so that none is lost that there is.
    """
    if place < len(head):
        yield head[place:]
    elif opened.seekable:
        opened.stream.seek(place)
    else:
        _discard(opened.stream, place - len(head))
    num_single = CAREFUL_BYTES if careful and not opened.seekable else 0
    for size in chain(repeat(1, num_single), repeat(CHUNK_BYTES)):
        if not (piece := opened.stream.read(size)):
            return
        yield piece


def size_of(file: str) -> int | None:
    """Size in bytes as it lies there; None where there is no such file or nobody knows.

    Raises:
        UserError: it cannot be asked for.
    """
    if not _is_remote(file):
        return os.stat(file).st_size if os.path.exists(file) else None
    try:
        system, path = _file_system(file)
        return _patiently(file, lambda: system.info(path).get("size"))
    except Unreachable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UserError(
            str(error),
            where=file,
            remedy="check the network and the access rights, or leave the file out",
        ) from error


def describe(error: BaseException) -> str:
    """One line on what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    kind = "" if type(error) in (OSError, Unreachable) else type(error).__name__
    return ": ".join(filter(None, [kind, *lines[:1]]))


class RemoteFile(RawIOBase):
    """A remote file, opened anew where a read fails.

    Raises:
        Unreachable: every try failed.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file
        self._stream: Any = None
        self._system, self._path = _file_system(file)
        self._place = 0
        self._size: int | None = None
        """None: it can be read from its beginning only."""
        _patiently(file, self._opened)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Whether reading from a place on costs nothing for what is before it."""
        return self._size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to where the next read begins."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size or 0}
        self._place = origin[whence] + offset
        return self._place

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        """Up to so many bytes; none at the end only."""
        data = _patiently(self._file, lambda: self._read(size))
        self._place += len(data)
        return data

    def close(self) -> None:
        """Give the connection back."""
        if self._stream is not None:
            self._stream.close()
        super().close()

    def _read(self, size: int) -> bytes:
        stream = self._opened()
        try:
            if stream.tell() != self._place:
                stream.seek(self._place)
            data = stream.read(size)
            if size and not data and self._place < (self._size or 0):
                raise OSError(f"it ended at byte {self._place} of {self._size}")
        except Exception:
            self._stream = None
            # what failed to read may well fail to close
            with suppress(Exception):
                stream.close()
            raise
        return data

    def _opened(self) -> Any:
        if self._stream is None:
            stream: Any = self._system.open(self._path, "rb")
            if _is_web(self._file) and not _serves_ranges(stream):
                stream.close()
                stream, self._size = self._system.open(self._path, "rb", block_size=0), None
                _discard(stream, self._place)
            else:
                self._size = stream.size
            self._stream = stream
        return self._stream


def _patiently(file: str, act: Callable[[], T]) -> T:
    failures = 0
    while True:
        try:
            return act()
        # every protocol has exceptions of its own
        except Exception as error:
            failures += 1
            what = describe(error)
            if failures > RETRIES:
                raise Unreachable(f"cannot be read, tried {failures} times: {what}") from error
            pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1)
            logger.warning("%s: %s; retry %d of %d in %g s", file, what, failures, RETRIES, pause)
            sleep(pause)


def _discard(stream: Any, num_bytes: int) -> None:
    while num_bytes and (data := stream.read(min(num_bytes, CHUNK_BYTES))):
        num_bytes -= len(data)


def _is_remote(file: str) -> bool:
    return "://" in file


def _is_web(file: str) -> bool:
    return file.startswith(("http://", "https://"))


def _file_system(file: str) -> tuple[AbstractFileSystem, str]:
    options: dict[str, Any] = {}
    if _is_web(file):
        import aiohttp

        # a file that is read for hours is no failure, a server that falls silent is
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        return url_to_fs(file, **options)
    # no such protocol, or no package for it: nothing that time mends
    except (ImportError, ValueError) as error:
        raise Unreachable(f"cannot be opened: {error}") from error


def _serves_ranges(stream: Any) -> bool:
    """Whether a web server gives parts of a file; found out with the last byte of it."""
    if not stream.size:
        return False
    try:
        stream.seek(-1, os.SEEK_END)
        stream.read(1)
    # fsspec's way to say that the server sent all of it
    except ValueError:
        return False
    return True
