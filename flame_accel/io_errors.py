"""I/O errors, by whomever they are raised: a full disk, a broken one, a place without permission.

Readers and writers in Rust (safetensors, tokenizers) raise exceptions of their own, with the number
of the system's error in the message only. What is done about an error is decided where something is
read or written. Standard library only.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

ERROR_NUMBER_IN_MESSAGE = re.compile(r"\(os error (\d+)\)")
"""As Rust's standard library ends the message of a system call's error."""
NOT_SUCH_A_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
READ_PAUSES_SECONDS = (0.5, 2.0)
"""Before what could not be read is read again: a network file system may be back by then."""


def describe_if_io_error(error: BaseException) -> str | None:
    """The reason and, if known, the path of an I/O error; None for any other exception."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if path]
        return f"{reason} ({' -> '.join(paths)})" if paths else reason
    number = _error_number(error)
    return os.strerror(number) if number is not None else None


def is_failed_read(error: BaseException) -> bool:
    """Whether an error of reading is the machine's, and says nothing about what is stored there.

    Not those that say that the file is missing, or something else than a file.
    """
    number = _error_number(error)
    return number is not None and number not in NOT_SUCH_A_FILE


def retry_failed_reads(read: Callable[[], Result]) -> Result:
    """Calls `read` again, after a pause, where it fails as `is_failed_read` says; a few times."""
    for pause_seconds in READ_PAUSES_SECONDS:
        try:
            return read()
        except Exception as error:
            if not is_failed_read(error):
                raise
            time.sleep(pause_seconds)
    return read()


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = ERROR_NUMBER_IN_MESSAGE.search(str(error))
    return int(found[1]) if found else None
