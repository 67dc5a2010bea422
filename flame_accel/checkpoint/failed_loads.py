"""Loads that fail: the ranks agree whether the contents are wrong, or a disk does not answer.

What cannot be loaded is passed over for an older checkpoint. What cannot be read is not: a start
would go back and set the newer one aside, for a cable. It is read again after a pause, and then the
start ends without changing anything.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.distributed import DistError
from torch.distributed.checkpoint.api import CheckpointException

from flame_accel.checkpoint_files import list_checkpoint_entries, step_of_checkpoint_name
from flame_accel.config import UserError
from flame_accel.io_errors import READ_PAUSES_SECONDS, describe_if_io_error, is_failed_read
from flame_accel.observe import get_logger

Result = TypeVar("Result")


class UnloadableCheckpointError(Exception):
    """A checkpoint whose files are those that were written, and which cannot be loaded."""


def failed_read_error(checkpoint: Path, reason: str) -> UserError:
    """The error that ends a start which cannot read a checkpoint.

    Args:
        checkpoint: Its folder.
        reason: What failed, with the file.
    """
    step = step_of_checkpoint_name(checkpoint.name)
    steps = list_checkpoint_entries(checkpoint.parent).checkpoints
    older = [each for each in steps if step is not None and each < step]
    remedy = "repeat the command once the disk or the network answers"
    if older:
        remedy += (
            f". To give up what a run did after an older checkpoint, such as step {older[-1]}: "
            f"--checkpoint.load_step {older[-1]}"
        )
    return UserError(
        f"cannot be read: {reason}. It may be intact: nothing was changed",
        where=str(checkpoint),
        remedy=remedy,
    )


def load_or_fail_on_all_ranks(checkpoint: Path, what: str, load: Callable[[], Result]) -> Result:
    """Calls `load` on every rank; where it fails on one of them, no rank goes on.

    Args:
        checkpoint: The checkpoint's folder.
        what: What is loaded, for the error.
        load: Loads this rank's part.

    Raises:
        UnloadableCheckpointError: On every rank, if what any rank read cannot be loaded. Errors of
            the machine, such as no memory, are raised as they are.
        UserError: On every rank, if any could not read a file, also after some pauses.
    """
    for pause_seconds in (*READ_PAUSES_SECONDS, None):
        result, problem = None, None
        try:
            result = load()
        except UnloadableCheckpointError as error:
            problem = _LoadProblem(str(error), is_failed_read=False)
        except (Exception, CheckpointException) as error:
            failed_read = _find_failed_read(error)
            if failed_read is not None:
                problem = _LoadProblem(str(describe_if_io_error(failed_read)), is_failed_read=True)
            elif _comes_from_contents(error):
                problem = _LoadProblem(describe_unloadable(what, error), is_failed_read=False)
            else:
                raise
        problems = [each for each in gather_object([problem]) if each is not None]
        failed_reads = [each for each in problems if each.is_failed_read]
        if problems and not failed_reads:
            raise UnloadableCheckpointError(problems[0].what)
        if not problems:
            break
        if pause_seconds is None:
            raise failed_read_error(checkpoint, f"{what}, {failed_reads[0].what}")
        get_logger().warning("%s, %s: read again", checkpoint, failed_reads[0].what)
        time.sleep(pause_seconds)
    return cast(Result, result)


def read_or_raise_on_all_ranks(read: Callable[[], Result]) -> Result:
    """Calls `read` on every rank; where it fails on one, all raise what that one raised.

    For what `load` of `load_or_fail_on_all_ranks` reads before a collective, in which the others
    would wait while that rank already tells them of its failure. Every rank must call it.
    """
    result, own = None, None
    try:
        result = read()
    except (Exception, CheckpointException) as error:
        own = error
    failures = [each for each in gather_object([own]) if each is not None]
    if own is not None:
        raise own
    if failures:
        raise failures[0]
    return cast(Result, result)


class _LoadProblem(NamedTuple):
    """Why a rank could not load."""

    what: str
    is_failed_read: bool
    """Whether it could not read, and knows nothing of the contents."""


def _find_failed_read(error: BaseException) -> BaseException | None:
    """The error itself, or the one of any rank in it, that is a failed read; None if none is."""
    failures = [error]
    if isinstance(error, CheckpointException):
        failures = [failure for failure, _ in error.failures.values()]
    # of a rank that is gone, not of a file
    return next(
        (e for e in failures if is_failed_read(e) and not isinstance(e, ConnectionError)), None
    )


def describe_unloadable(what: str, error: BaseException) -> str:
    """A sentence about contents that cannot be loaded."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    reason = next(iter(str(error).splitlines()), "")
    return f"{what} cannot be loaded ({type(error).__name__}: {reason})"


def _comes_from_contents(error: BaseException) -> bool:
    """Whether an error says that what was read is wrong, and not the user or the machine."""
    if isinstance(error, CheckpointException):
        return all(_comes_from_contents(failure[0]) for failure in error.failures.values())
    # some of these are among those below
    machine = torch.OutOfMemoryError, torch.AcceleratorError, DistError, ConnectionError
    contents = ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError, EOFError
    return isinstance(error, (*contents, SafetensorError)) and not isinstance(error, machine)
