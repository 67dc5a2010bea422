"""Where records go: the console and metrics.jsonl always, Accelerate's trackers where enabled.

Values come from `meter` and `evaluation`; nothing is computed here. With `metrics.no_rank_0_only`
every rank also writes its own values for TensorBoard, in a subfolder of the common one.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flame_accel.config import MetricsConfig
from flame_accel.config.secrets import mask_secrets
from flame_accel.observe.console import format_record, get_logger
from flame_accel.observe.evaluations_file import Evaluation, EvaluationsFile
from flame_accel.observe.metrics_file import METRICS_FILE, MetricsFile
from flame_accel.observe.trackers import (
    RunDescription,
    TrackerDelivery,
    TrackerIdentities,
    build_tracker_run,
    enabled_tracker_names,
)
from flame_accel.process_end import end_without_waiting


class MetricLogger:
    """Writes the records of a run to the console, metrics.jsonl and Accelerate's trackers.

    Args:
        accelerator: The run's accelerator.
        run_folder: Folder of metrics.jsonl.
        metrics: Options of section metrics.
        options: Every option of the run by section, as the trackers' hyper-parameters.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run_folder: Path,
        *,
        metrics: MetricsConfig,
        options: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.accelerator = accelerator
        self.metrics_file = MetricsFile(run_folder / METRICS_FILE)
        self.evaluations_file = EvaluationsFile(run_folder)
        self._metrics = metrics
        self._failing: set[str] = set()
        self._description = RunDescription(
            project=metrics.project,
            name=run_folder.resolve().name,
            options=flatten_options_without_secrets(options),
            run_folder=run_folder,
            tensorboard_folder=run_folder / metrics.save_tb_folder,
        )
        self._deliveries: list[TrackerDelivery] = []
        self._local_writer: Any = None

    def start_trackers(self, step: int) -> None:
        """Starts what sends records to the trackers, once metrics.jsonl ends at a step.

        Args:
            step: Number of completed steps: what trackers have of later ones comes again.
        """
        if self.accelerator.is_main_process:
            identities = TrackerIdentities(self._description.run_folder)
            for name in enabled_tracker_names(self._metrics):
                run = build_tracker_run(name, self._description, identities)
                self._deliveries.append(TrackerDelivery(run, self.metrics_file.path, step=step))
                self._deliveries[-1].start()
        if not self._metrics.rank_0_only:
            self._open_local_writer(step)

    def _open_local_writer(self, step: int) -> None:
        # only where it is needed: it takes long to import
        from torch.utils.tensorboard import SummaryWriter

        folder = self._description.tensorboard_folder / f"rank-{self.accelerator.process_index}"
        self._local_writer = SummaryWriter(str(folder), purge_step=step + 1)

    def go_back(self, step: int) -> None:
        """Has the records after a step dropped everywhere: they come again. Every rank calls it.

        Raises:
            OSError: On the main process: the files of records cannot be read or written.
        """
        if self._local_writer is not None:
            self._local_writer.close()
            self._open_local_writer(step)
        if self.accelerator.is_main_process:
            self.metrics_file.go_back(step)
            self.evaluations_file.go_back(step)
            for delivery in self._deliveries:
                delivery.go_back(step)

    def finish_trackers(self, wait_seconds: float) -> None:
        """Ends the trackers' runs, and waits for their last records for a limited time.

        A tracker that hangs longer is left behind, and so is what would wait for it as the process
        ends. The next start of the run sends what it lacks.
        """
        deadline = time.monotonic() + wait_seconds
        for delivery in self._deliveries:
            delivery.close()
        for delivery in self._deliveries:
            if not delivery.join(max(0.0, deadline - time.monotonic())):
                end_without_waiting()
                reason = f"has not taken its last records within {wait_seconds:.0f} s"
            elif delivery.has_failed:
                reason = "failed"
            else:
                continue
            get_logger().warning(
                "%s %s; metrics.jsonl has all records, and a start that resumes the run sends them",
                *(delivery.name, reason),
            )
        self._deliveries.clear()

    def log_and_write_record(
        self,
        record: Mapping[str, float],
        *,
        total_steps: int,
        remaining_seconds: float | None = None,
    ) -> None:
        """Logs and writes a record; called on every rank, the main process writes.

        Args:
            record: Values by key, with the key `step`.
            total_steps: Of the run.
            remaining_seconds: Until its end, for the console; None if unknown.
        """
        get_logger().info("%s", format_record(record, total_steps, remaining_seconds))
        if self.accelerator.is_main_process:
            self.metrics_file.append(record)
            for delivery in self._deliveries:
                delivery.add(record)

    def write_evaluations(self, evaluations: Iterable[Evaluation]) -> None:
        """Writes evaluations.jsonl; called on every rank, the main process writes."""
        if self.accelerator.is_main_process:
            for evaluation in evaluations:
                self.evaluations_file.append(evaluation)

    @contextmanager
    def _failures_logged(self, what: str) -> Iterator[None]:
        """Curves are no reason to end a run: logs the first of several failures in a row."""
        try:
            yield
        except Exception as error:
            if what not in self._failing:
                get_logger().warning("%s: %s: %s", what, type(error).__name__, error)
            self._failing.add(what)
        else:
            self._failing.discard(what)

    def write_rank_values_to_own_tensorboard_if_enabled(
        self, values_of_rank: Mapping[str, float], *, step: int
    ) -> None:
        """Writes this rank's own values for TensorBoard, with `metrics.no_rank_0_only`."""
        if self._local_writer is None:
            return
        with self._failures_logged("TensorBoard"):
            for name, value in values_of_rank.items():
                self._local_writer.add_scalar(name, value, global_step=step)
            self._local_writer.flush()


def flatten_options_without_secrets(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`section.option` -> value, as text without secrets where it is no number."""
    return {
        f"{section}.{name}": value if isinstance(value, (int, float)) else mask_secrets(str(value))
        for section, values in options.items()
        for name, value in values.items()
    }
