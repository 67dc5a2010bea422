"""Standard output and standard error that cannot end a process, whatever they are connected to.

A console may be closed, full, the end of a pipe that nobody reads any more, or of an encoding that
lacks a character. None of that is a reason to lose a training run: what cannot be written is
dropped, and a character that cannot be encoded is shown as its escape. `protect_standard_streams`
is called first thing in every process, so that it holds for logging, progress bars, warnings and
other packages alike. What is printed is decided elsewhere; log.txt is written in `observe/console`.
"""

import contextlib
import io
import os
import select
import sys
from typing import Any, TextIO


class _NeverFailingFile(io.FileIO):
    """A file descriptor whose writes never fail: what it does not accept is dropped."""

    def write(self, data: Any, /) -> int:
        """Returns the number of bytes consumed; all of them where they were dropped."""
        try:
            while (written := super().write(data)) is None:
                # non-blocking, and its reader is slow
                select.select([], [self], [])
        except OSError:
            return memoryview(data).nbytes
        return written


def protect_standard_streams() -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams whose writes never fail.

    Descriptors 0 to 2 that are closed are opened on the null device, so that no file that is opened
    later gets one of them, along with what native code prints. Streams that a test or a notebook
    has put in place are kept.
    """
    for descriptor in (0, 1, 2):
        _open_null_device_if_closed(descriptor)
    sys.stdout = _wrap_with_never_failing_writes(sys.stdout, 1)
    sys.stderr = _wrap_with_never_failing_writes(sys.stderr, 2)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr


def _open_null_device_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        # the lowest free number, which is this one since the lower ones are open
        os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, True)


def _wrap_with_never_failing_writes(stream: TextIO | None, descriptor: int) -> TextIO:
    """A stream like `stream` whose writes never fail; None is what Python has for a closed one."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if type(stream) is not io.TextIOWrapper or not _writes_to_descriptor(stream, descriptor):
        return stream
    if isinstance(getattr(stream.buffer, "raw", None), _NeverFailingFile):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_NeverFailingFile(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _writes_to_descriptor(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False
