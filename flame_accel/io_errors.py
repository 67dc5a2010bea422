"""I/O errors, by whomever they are raised: a full disk, a broken one, a place without permission.

Writers in Rust (safetensors, tokenizers) raise exceptions of their own, with the number of the
system's error in the message only. What is done about an error is decided where something is
written. Standard library only.
"""

import os
import re

ERROR_NUMBER_IN_MESSAGE = re.compile(r"\(os error (\d+)\)")
"""As Rust's standard library ends the message of a system call's error."""


def describe_if_io_error(error: BaseException) -> str | None:
    """The reason and, if known, the path of an I/O error; None for any other exception."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if path]
        return f"{reason} ({' -> '.join(paths)})" if paths else reason
    number = ERROR_NUMBER_IN_MESSAGE.search(str(error))
    return os.strerror(int(number[1])) if number else None
