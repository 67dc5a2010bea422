"""What a user can do wrong: one exception per mistake, and one for a whole configuration.

`exit_on_user_error` ends a process with such an error: its message without a traceback, and
`error.exit_code` as the exit status.
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flame_accel.config.secrets import mask_secrets
from flame_accel.io_errors import describe_if_io_error

LACK_OF_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|can't start new thread")
"""In messages of torch on a CPU and of Python."""


class UserError(Exception):
    """A problem that the user can solve; `str()` is the whole message, without secrets.

    Args:
        what: The value and the rule that it breaks.
        where: The flag, file and line, or path concerned.
        remedy: What to do about it.
        exit_code: Exit status of a process that ends with it.
    """

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, exit_code: int = 1
    ) -> None:
        self.what = mask_secrets(what)
        self.where = mask_secrets(where) if where else where
        self.remedy = mask_secrets(remedy) if remedy else remedy
        self.exit_code = exit_code
        message = f"{self.where}: {self.what}" if where else self.what
        super().__init__(f"{message}\n    {self.remedy}" if remedy else message)


class UsageError(UserError):
    """A wrong option, variable or launch, before anything was done; exit code 2."""

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what, where=where, remedy=remedy, exit_code=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRule:
    """A rule that options break, before it is known where the user set them."""

    options: tuple[str, ...]
    """The options concerned; the first is named in the message if the user set none of them."""
    rule: str
    """The rule that is broken."""
    remedy: str
    """What to do about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration, and where the user wrote it."""

    where: str
    """The flag, or the file, line and option."""
    value: str | None
    """The value as the user wrote it; None when there is none."""
    rule: str
    """The rule that it breaks."""
    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value}"
        return f"{self.where}{given}: {self.rule}\n    {self.remedy}"


class ConfigError(UserError):
    """All problems of a configuration at once; exit code 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = f"{count} problem{'' if count == 1 else 's'} in the configuration"
        super().__init__("\n".join([f"{title}:", *map(str, self.problems)]), exit_code=2)
        self.what = title


@contextmanager
def explain_io_errors() -> Iterator[None]:
    """Explains an I/O error that nothing has taken care of: a full disk has no use for a traceback.

    Raises:
        UserError: In place of the error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := describe_if_io_error(error)) is None:
            raise
        raise UserError(
            f"an I/O error ended it: {reason}",
            remedy="make room there, mend the disk or the permissions, and repeat the command",
        ) from error


@contextmanager
def explain_lack_of_memory() -> Iterator[None]:
    """Explains that the machine gave no more memory, threads or processes to a run.

    Raises:
        UserError: In place of the error; torch's is recognised by its name.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if not (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or number in (errno.ENOMEM, errno.EAGAIN)
            or (number is None and LACK_OF_MEMORY.search(str(error)))
        ):
            raise
        raise UserError(
            f"memory ran out: {str(error).strip() or type(error).__name__}",
            remedy="lower training.batch_size and raise training.gradient_accumulation_steps as "
            "much, which keeps the rows per step; set activation_checkpoint.mode; or lower "
            "training.num_workers. Then repeat the command",
        ) from error


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Prints a `UserError` that leaves the block and ends the process with its exit code."""
    try:
        yield
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        # every rank of a launch runs into the same error: one of them explains it
        print(f"\n{error}" if rank == "0" else f"rank {rank}: {error.what}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ends a process that Ctrl-C interrupts in the block without a traceback, as a shell says."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
