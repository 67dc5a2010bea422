"""Saves that fail, because a disk is full or broken: the ranks agree, and the run goes on.

An I/O error on one rank is the failure of the save on all of them, and none is left waiting in a
collective. A failed save costs nothing but itself: older checkpoints stay, and the next interval
tries again. Too many in a row end the run, and so does the last one, which nothing can make up for.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flame_accel.config import UserError
from flame_accel.io_errors import describe_if_io_error
from flame_accel.observe import get_logger
from flame_accel.parallel import HostGroup

MAKE_ROOM = "make room there, or mend the disk, and repeat the command"


class FailedSaveError(UserError):
    """A checkpoint could not be written; raised on all ranks together."""


def write_or_fail_on_all_ranks(
    ranks: HostGroup, write: Callable[[], object], *, checkpoint: Path
) -> None:
    """Calls `write` on every rank, and raises on all of them if it fails on any. All must call it.

    Args:
        ranks: All ranks; nobody else may use the group meanwhile.
        write: Writes this rank's part. It must not contain a collective that another rank, where
            it failed earlier, does not reach.
        checkpoint: What is being saved, for the error.

    Raises:
        FailedSaveError: On every rank, after an I/O error on any. Another exception is raised as it
            is where it happened, and as a `UserError` that names it elsewhere.
    """
    own: Exception | None = None
    try:
        write()
    except Exception as error:
        own = error
    outcomes = ranks.gather_objects(_WriteFailure.of_error(own))
    failures = [(rank, failure) for rank, failure in enumerate(outcomes) if failure is not None]
    for rank, failure in failures:
        if failure.io_reason is None:
            if own is not None:
                raise own
            raise UserError(f"rank {rank} failed to save: {failure.error}", where=str(checkpoint))
    for rank, failure in failures:
        on_rank = f" on rank {rank}" if len(outcomes) > 1 else ""
        raise FailedSaveError(
            f"could not be saved{on_rank}: {failure.io_reason}",
            where=str(checkpoint),
            remedy=MAKE_ROOM,
        ) from own


class _WriteFailure(NamedTuple):
    """What went wrong on a rank."""

    error: str
    io_reason: str | None
    """None if it is no I/O error."""

    @classmethod
    def of_error(cls, error: Exception | None) -> "_WriteFailure | None":
        return cls(repr(error), describe_if_io_error(error)) if error is not None else None


class FailedSaves:
    """Counts the saves of a run that failed, those in a row.

    Args:
        max_failures: So many in a row end the run.
    """

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self._in_a_row: list[FailedSaveError] = []

    @contextmanager
    def logged(self, *, is_last: bool) -> Iterator[None]:
        """Logs a save that fails in the block. All ranks must enter it.

        Args:
            is_last: Whether no further save follows; `raise_if_latest_failed` then ends the run,
                after what it still has to do.

        Raises:
            FailedSaveError: There were too many in a row.
        """
        try:
            yield
        except FailedSaveError as error:
            # a new one: the traceback would keep the gathered weights in memory
            self._in_a_row.append(FailedSaveError(error.what, where=error.where))
            failures = len(self._in_a_row)
            get_logger().error("%s: %s", error.where, error.what)
            if is_last:
                return
            if failures >= self.max_failures:
                raise FailedSaveError(
                    f"{error.what}. This run ends after {failures} failed saves in a row "
                    "(checkpoint.max_failures)",
                    where=error.where,
                    remedy=f"{MAKE_ROOM}: it continues from its newest checkpoint",
                ) from error
            get_logger().error(
                "the run goes on; %d of at most %d failed saves in a row (checkpoint.max_failures)",
                failures,
                self.max_failures,
            )
        else:
            self._in_a_row.clear()

    def raise_if_latest_failed(self) -> None:
        """Ends a run, on all ranks, whose last state was not saved.

        Raises:
            FailedSaveError: The latest save failed.
        """
        if self._in_a_row:
            latest = self._in_a_row[-1]
            raise FailedSaveError(
                f"the last checkpoint of this run {latest.what}",
                where=latest.where,
                remedy=f"{MAKE_ROOM}: it continues from its newest checkpoint",
            )


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Checks that a checkpoint fits on its disk, before it is filled up for nothing.

    Args:
        folder: Where it will be written; it exists.
        needed_bytes: An estimate, not above the true size.

    Raises:
        OSError: It does not fit.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            f"about {needed_bytes / 2**30:,.2f} GiB are needed, "
            f"and {free / 2**30:,.2f} GiB are free on the disk of {folder}"
        )
