"""Sends the records of metrics.jsonl to a tracker, from a thread that may fail or hang.

metrics.jsonl is the truth. Records also pass through memory, up to a number; what is lost there,
by a failure or by a kill is read from the file again. Which records a tracker has is asked of
the tracker (`tracker_run`), not remembered here.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from flame_accel.config.secrets import mask_secrets
from flame_accel.observe.console import get_logger
from flame_accel.observe.evaluations_file import EVALUATIONS_FILE, Sample, read_evaluations
from flame_accel.observe.metrics_file import read_records
from flame_accel.observe.trackers.tracker_run import Record, TrackerRun

MOST_PENDING = 1000
"""Records that wait in memory at most; later ones are read from metrics.jsonl."""
FIRST_RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 600.0


class _SamplesByStep:
    """Generated texts of evaluations.jsonl, read again when the file has changed.

    A run writes the evaluations of a step before its record.
    """

    def __init__(self, run_folder: Path) -> None:
        self._run_folder = run_folder
        self._read_at = (0, 0)
        self._samples: dict[int, list[Sample]] = {}

    def of_step(self, step: int) -> list[Sample]:
        """The texts of a step, of all evaluations."""
        path = self._run_folder / EVALUATIONS_FILE
        if not path.is_file():
            return []
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != self._read_at:
            self._read_at = (status.st_size, status.st_mtime_ns)
            self._samples = {}
            for evaluation in read_evaluations(self._run_folder):
                self._samples.setdefault(evaluation.step, []).extend(evaluation.samples)
        return self._samples.get(step, [])


class TrackerDelivery:
    """Keeps one tracker's run equal to metrics.jsonl. No method waits for the tracker but `join`.

    Args:
        run: The tracker's run; only the thread of this object uses it.
        metrics_path: metrics.jsonl of the run.
        step: Number of completed steps: what the tracker has of later ones comes again.
    """

    def __init__(self, run: TrackerRun, metrics_path: Path, *, step: int) -> None:
        self.name = run.name
        self._run = run
        self._metrics_path = metrics_path
        self._changed = threading.Condition()
        self._samples = _SamplesByStep(metrics_path.parent)
        # shared with the thread, under the condition
        self._pending: deque[Record] = deque(maxlen=MOST_PENDING)
        self._lost_pending = False
        self._goes_back_to: int | None = step
        self._closing = False
        # of the thread alone
        self._is_open = False
        self._last_step = step
        self._failures = 0
        self._retry_at = 0.0
        self._thread = threading.Thread(
            target=self._deliver_until_closed, name=f"tracker {self.name}", daemon=True
        )

    def start(self) -> None:
        """Starts the thread, which opens the run and sends what it lacks."""
        self._thread.start()

    def add(self, record: Record) -> None:
        """Has a record sent that metrics.jsonl has got."""
        with self._changed:
            self._lost_pending |= len(self._pending) == MOST_PENDING
            self._pending.append(record)
            self._changed.notify()

    def go_back(self, step: int) -> None:
        """Has what the tracker holds of later steps taken back: metrics.jsonl has dropped them."""
        with self._changed:
            self._pending.clear()
            earlier = self._goes_back_to
            self._goes_back_to = step if earlier is None else min(step, earlier)
            self._changed.notify()

    def close(self) -> None:
        """Has the thread send the rest, end the run of the tracker, and end itself."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Waits for the thread after `close`; returns whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether the latest attempt to send records, or to end the run of the tracker, failed."""
        return bool(self._failures)

    def _deliver_until_closed(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                delay = self._retry_at - time.monotonic() if self._failures else None
                self._changed.wait_for(self._has_work, timeout=delay)
                if not self._has_work():
                    continue
                closing = self._closing
            self._run_and_log_failure(self._deliver)
        if self._is_open:
            self._run_and_log_failure(self._run.close)

    def _has_work(self) -> bool:
        has_records = self._goes_back_to is not None or self._pending or not self._is_open
        return self._closing or (bool(has_records) and time.monotonic() >= self._retry_at)

    def _run_and_log_failure(self, action: Callable[[], object]) -> None:
        try:
            action()
        # W&B may exit
        except (Exception, SystemExit) as error:
            if not self._failures:
                get_logger().warning(
                    "%s: %s: %s; the training continues, and what the tracker lacks is sent from "
                    "metrics.jsonl once it works",
                    *(self.name, type(error).__name__, mask_secrets(str(error))),
                )
            self._is_open = False
            self._retry_at = time.monotonic() + min(
                FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS
            )
            self._failures += 1
        else:
            if self._failures:
                get_logger().info("%s: works again", self.name)
            self._failures = 0

    def _deliver(self) -> None:
        with self._changed:
            goes_back_to, self._goes_back_to = self._goes_back_to, None
            reads_file = goes_back_to is not None or not self._is_open or self._lost_pending
            records = list(self._pending)
            self._pending.clear()
            self._lost_pending = False
        if goes_back_to is not None:
            self._last_step = min(self._last_step, goes_back_to)
            self._is_open = False
        if reads_file and self._metrics_path.exists():
            # it has the first of the pending ones too, or all
            recorded = read_records(self._metrics_path)
            last_step = recorded[-1]["step"] if recorded else 0
            records = [*recorded, *(each for each in records if each["step"] > last_step)]
        if not self._is_open:
            count = self._run.open(records, self._last_step)
            self._last_step = int(records[count - 1]["step"]) if count else 0
            self._is_open = True
        for record in records:
            if record["step"] > self._last_step:
                step = int(record["step"])
                self._run.log(record, self._samples.of_step(step))
                self._last_step = step
