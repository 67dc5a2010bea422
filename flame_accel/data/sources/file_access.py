"""The bytes of a file: local paths and URLs of any `fsspec` protocol, decompressed.

A remote read that fails is retried from the byte where it failed. What the bytes mean is decided
in `file_readers`.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedReader, FileIO, RawIOBase
from itertools import chain, repeat
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from flame_accel.config.errors import UserError
from flame_accel.data.sources.file_formats import gzip_or_zstd_by_suffix

RETRIES = 5
"""Number of times that a failed remote read is retried."""
FIRST_PAUSE_SECONDS = 1.0
"""Pause before the first retry; each further one is twice as long."""
CHUNK_BYTES = 1 << 20
SINGLE_BYTE_READS = 2 * CHUNK_BYTES
"""Number of bytes of a damaged compressed file that are read one by one."""

sleep = time.sleep
logger = logging.getLogger(__name__)
T = TypeVar("T")


class RemoteReadError(OSError):
    """A remote file that could not be read, in spite of all retries."""


class ByteStream(Protocol):
    """What is used of a binary file that is open for reading."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none only at the end."""
        ...

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the offset of the next read; returns it."""
        ...


class StreamWithSeekability(NamedTuple):
    """An open file, decompressed if its name says that it is compressed."""

    stream: ByteStream
    seekable: bool
    """Whether reading from a position costs nothing for the bytes before it."""


@contextmanager
def open_decompressed_or_raise_os_error(file: str) -> Iterator[StreamWithSeekability]:
    """Open a file for reading from its start.

    Raises:
        OSError: it cannot be opened; reading may raise it as well.
    """
    compression = gzip_or_zstd_by_suffix(file)
    raw = MaybeSeekableRemoteFile(file) if _is_remote(file) else BufferedReader(FileIO(file))
    with raw:
        if compression is None:
            yield StreamWithSeekability(raw, raw.seekable())
            return
        source: Any = pa.PythonFile(raw, mode="r")
        with pa.CompressedInputStream(source, compression) as stream:
            yield StreamWithSeekability(stream, False)


@contextmanager
def open_decompressed_seekable(file: str) -> Iterator[ByteStream]:
    """Open a file for reading anywhere in it: copied to a temporary file if need be."""
    with open_decompressed_or_raise_os_error(file) as opened:
        if opened.seekable:
            yield opened.stream
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(opened.stream, copy, CHUNK_BYTES)
            copy.seek(0)
            yield copy


def read_chunks_from(
    opened: StreamWithSeekability,
    bytes_already_read: bytes,
    start_position: int,
    *,
    start_byte_by_byte: bool = False,
) -> Iterator[bytes]:
    """Read the bytes from a position to the end, in chunks.

    Args:
        opened: the file.
        bytes_already_read: the bytes that were already read from its start.
        start_position: offset of the first byte wanted.
        start_byte_by_byte: begin with single bytes: a failing read loses its whole chunk, though a
            part of it may have been decompressed.
    """
    if start_position < len(bytes_already_read):
        yield bytes_already_read[start_position:]
    elif opened.seekable:
        opened.stream.seek(start_position)
    else:
        _read_and_discard_at_most(opened.stream, start_position - len(bytes_already_read))
    num_single = SINGLE_BYTE_READS if start_byte_by_byte and not opened.seekable else 0
    for size in chain(repeat(1, num_single), repeat(CHUNK_BYTES)):
        if not (piece := opened.stream.read(size)):
            return
        yield piece


def stored_size_or_none_if_missing(file: str) -> int | None:
    """Size in bytes as stored; None if there is no such file, or the size is not known.

    Raises:
        UserError: the server does not answer.
    """
    if not _is_remote(file):
        return os.stat(file).st_size if os.path.exists(file) else None
    try:
        remote = _resolve_or_raise_remote_read_error(file)
        return _retry_any_error_then_raise_remote_read_error(
            file, lambda: remote.filesystem.info(remote.path).get("size")
        )
    except RemoteReadError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UserError(
            str(error),
            where=file,
            remedy="check the network and the access rights, or leave the file out",
        ) from error


def describe_error_in_one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    kind = "" if type(error) in (OSError, RemoteReadError) else type(error).__name__
    return ": ".join(filter(None, [kind, *lines[:1]]))


class MaybeSeekableRemoteFile(RawIOBase):
    """A remote file for reading, reopened when a read fails.

    Raises:
        RemoteReadError: all retries failed.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file
        self._stream: Any = None
        self._remote = _resolve_or_raise_remote_read_error(file)
        self._position = 0
        self._size: int | None = None
        """None: it can only be read from its start."""
        _retry_any_error_then_raise_remote_read_error(file, self._reuse_or_open_stream_setting_size)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """Whether reading from a position costs nothing for the bytes before it."""
        return self._size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the offset of the next read; returns it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size or 0}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        """The offset of the next read."""
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes; none only at the end."""
        data = _retry_any_error_then_raise_remote_read_error(
            self._file, lambda: self._read_once_at_position(size)
        )
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
        super().close()

    def _read_once_at_position(self, size: int) -> bytes:
        stream = self._reuse_or_open_stream_setting_size()
        try:
            if stream.tell() != self._position:
                stream.seek(self._position)
            data = stream.read(size)
            if size and not data and self._position < (self._size or 0):
                raise OSError(f"it ended at byte {self._position} of {self._size}")
        except Exception:
            self._stream = None
            # a stream that failed to read may fail to close as well
            with suppress(Exception):
                stream.close()
            raise
        return data

    def _reuse_or_open_stream_setting_size(self) -> Any:
        if self._stream is None:
            open_stream = partial(self._remote.filesystem.open, self._remote.path, "rb")
            stream: Any = open_stream()
            if _is_http(self._file) and not _can_read_last_byte_by_range(stream):
                stream.close()
                stream, self._size = open_stream(block_size=0), None
                _read_and_discard_at_most(stream, self._position)
            else:
                self._size = stream.size
            self._stream = stream
        return self._stream


def _retry_any_error_then_raise_remote_read_error(file: str, operation: Callable[[], T]) -> T:
    """Call `operation` until it succeeds.

    Raises:
        RemoteReadError: it failed once and in all `RETRIES`.
    """
    failures = 0
    while True:
        try:
            return operation()
        # every protocol has its own exceptions
        except Exception as error:
            failures += 1
            what = describe_error_in_one_line(error)
            if failures > RETRIES:
                raise RemoteReadError(f"cannot be read, tried {failures} times: {what}") from error
            pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1)
            logger.warning("%s: %s; retry %d of %d in %g s", file, what, failures, RETRIES, pause)
            sleep(pause)


def _read_and_discard_at_most(stream: ByteStream, max_bytes: int) -> None:
    while max_bytes and (data := stream.read(min(max_bytes, CHUNK_BYTES))):
        max_bytes -= len(data)


def _is_remote(file: str) -> bool:
    return "://" in file


def _is_http(file: str) -> bool:
    return file.startswith(("http://", "https://"))


class _RemotePath(NamedTuple):
    """Where `fsspec` finds a remote file."""

    filesystem: AbstractFileSystem
    path: str


def _resolve_or_raise_remote_read_error(file: str) -> _RemotePath:
    options: dict[str, Any] = {}
    if _is_http(file):
        import aiohttp

        # reading a file for hours is fine, a server that stops answering is not
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        return _RemotePath(*url_to_fs(file, **options))
    # no such protocol, or no package for it: retrying cannot help
    except (ImportError, ValueError) as error:
        raise RemoteReadError(f"cannot be opened: {error}") from error


def _can_read_last_byte_by_range(stream: Any) -> bool:
    """Whether a web server can send a part of a file; tried with its last byte."""
    if not stream.size:
        return False
    try:
        stream.seek(-1, os.SEEK_END)
        stream.read(1)
    # fsspec raises it when the server sends the whole file
    except ValueError:
        return False
    return True
