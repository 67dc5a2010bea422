"""Bad records: the errors that end a run, and what the log says of those that were passed over.

Which records are bad is `SkipPolicy`'s word; lanes count them in their cursors.
"""

import logging
from collections.abc import Sequence

from flame_accel.config.errors import UserError
from flame_accel.data.parts import Skipped, SkipPolicy

LOGGED_RECORDS = 10
"""Bad records of which the log says where they are; of later ones it says how many."""

log = logging.getLogger(__name__)


class BadRecords:
    """The bad records that a rank has met.

    Args:
        limit: more than so many stop the run; None: there is no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.total = 0
        """Those that were met since the run began."""
        self._limit = limit
        self._num_logged = 0
        self._announced = LOGGED_RECORDS

    def judge(self, record: Skipped, policy: SkipPolicy, source: str) -> None:
        """Refuse a record, or meet it, as the policy says.

        Raises:
            UserError: it is refused, or one too many.
        """
        if policy.is_refused(record):
            raise refused(record, source)
        if policy.is_bad(record):
            self.meet([record])

    def meet(self, new: Sequence[Skipped]) -> None:
        """Log and limit those that were passed over since the last call.

        Raises:
            UserError: these are too many.
        """
        self.total += len(new)
        for record in new[: LOGGED_RECORDS - self._num_logged]:
            place = f"{record.where}: " if record.where else ""
            log.warning("bad record passed over: %s%s", place, _describe(record))
            self._num_logged += 1
        # then ever more rarely
        if new and self.total >= 2 * self._announced:
            self._announced = self.total
            log.warning("bad records passed over so far: %d", self.total)
        if self._limit is not None and self.total > self._limit:
            raise too_many(self.total, self._limit, new[-1] if new else None)


def refused(record: Skipped, source: str) -> UserError:
    """The error for a record that the policy does not let pass."""
    return UserError(
        record.what or f"the document is {record.why}",
        where=record.where or source,
        remedy="mend or remove the record, or pass over up to N such records with "
        "--training.max_bad_records N",
    )


def too_many(total: int, limit: int, last: Skipped | None) -> UserError:
    """The error that ends a run with more bad records than its limit."""
    return UserError(
        f"{total} bad records are more than training.max_bad_records {limit}"
        + (f"; the last one: {_describe(last)}" if last else ""),
        where=(last and last.where) or "training.max_bad_records",
        remedy="mend or remove them, or allow more with --training.max_bad_records",
    )


def _describe(record: Skipped) -> str:
    return record.what or record.why
