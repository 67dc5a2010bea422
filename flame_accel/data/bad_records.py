"""Bad records: which ones count, how many a run may skip, what is logged, which errors end it."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Skipped

MAX_LOGGED_RECORDS = 10
"""Number of bad records that the log names one by one; of later ones it only gives the number."""

log = logging.getLogger(__name__)


class SkipPolicy(NamedTuple):
    """What happens to records that give no document."""

    max_bad: int | None = None
    """None: empty records are skipped, and a damaged one stops the run. A number: both kinds count,
    and more than this many (over all lanes of a rank) stop the run; 0 stops at the first one."""

    def counts_damaged_always_and_empty_if_limited(self, skipped: Skipped) -> bool:
        """Whether the record counts against the limit."""
        return skipped.why == "damaged" or (skipped.why == "empty" and self.max_bad is not None)

    def stops_run(self, skipped: Skipped) -> bool:
        """Whether this record alone stops the run."""
        return self.counts_damaged_always_and_empty_if_limited(skipped) and not self.max_bad


class BadRecordCounter:
    """Counts and logs the bad records of a rank.

    Args:
        max_bad: more bad records than this stop the run; None: no limit.
    """

    def __init__(self, max_bad: int | None) -> None:
        self.total = 0
        """Number of bad records since the run began."""
        self._limit = max_bad
        self._num_logged = 0
        self._last_logged_total = MAX_LOGGED_RECORDS

    def raise_count_or_ignore_by_policy(
        self, record: Skipped, policy: SkipPolicy, source: str
    ) -> None:
        """Apply the policy to a record: raise, count it, or ignore it.

        Args:
            record: the record that gave no document.
            policy: which records count, and which stop the run.
            source: name of the data, for a record that does not say where it is.

        Raises:
            UserError: the policy does not allow the record, or it is one too many.
        """
        if policy.stops_run(record):
            raise refused_record_error(record, source)
        if policy.counts_damaged_always_and_empty_if_limited(record):
            self.count_and_log_first_or_raise_over_limit([record])

    def count_and_log_first_or_raise_over_limit(self, new_bad_records: Sequence[Skipped]) -> None:
        """Count and log the bad records that were skipped since the last call.

        Raises:
            UserError: there are now more than the limit.
        """
        self.total += len(new_bad_records)
        for record in new_bad_records[: MAX_LOGGED_RECORDS - self._num_logged]:
            place = f"{record.where}: " if record.where else ""
            log.warning("bad record skipped: %s%s", place, _skip_reason(record))
            self._num_logged += 1
        # then less and less often
        if new_bad_records and self.total >= 2 * self._last_logged_total:
            self._last_logged_total = self.total
            log.warning("bad records skipped so far: %d", self.total)
        if self._limit is not None and self.total > self._limit:
            raise too_many_bad_records_error(
                self.total, self._limit, new_bad_records[-1] if new_bad_records else None
            )


def refused_record_error(record: Skipped, source: str) -> UserError:
    """The error for a record that the policy does not allow; `source` names the data."""
    return UserError(
        record.what or f"the document is {record.why}",
        where=record.where or source,
        remedy="fix or remove the record, or skip up to N such records with "
        "--training.max_bad_records N",
    )


def too_many_bad_records_error(total: int, limit: int, last: Skipped | None) -> UserError:
    """The error for more bad records than the limit; `last` is the one that exceeded it."""
    return UserError(
        f"{total} bad records are more than training.max_bad_records {limit}"
        + (f"; the last one: {_skip_reason(last)}" if last else ""),
        where=(last and last.where) or "training.max_bad_records",
        remedy="fix or remove them, or allow more with --training.max_bad_records",
    )


def _skip_reason(record: Skipped) -> str:
    return record.what or record.why
