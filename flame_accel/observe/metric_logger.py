"""Where records go: the console and metrics.jsonl always, Accelerate's trackers where enabled.

Values come from `meter` and `evaluation`; nothing is computed here. With `metrics.no_rank_0_only`
every rank also writes its own values for TensorBoard, in a subfolder of the common one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flame_accel.config import MetricsConfig, UserError
from flame_accel.config.secrets import mask_secrets
from flame_accel.observe.console import format_record, get_logger
from flame_accel.observe.evaluations_file import Evaluation, EvaluationsFile
from flame_accel.observe.metrics_file import METRICS_FILE, MetricsFile


def enabled_tracker_names(metrics: MetricsConfig) -> list[str]:
    """Accelerate's names of the enabled trackers."""
    names = {"tensorboard": metrics.enable_tensorboard, "wandb": metrics.enable_wandb}
    return [name for name, enabled in names.items() if enabled]


class MetricLogger:
    """Writes the records of a run to the console, metrics.jsonl and Accelerate's trackers.

    Args:
        accelerator: The run's accelerator, built with `log_with=enabled_tracker_names(...)`.
        run_folder: Folder of metrics.jsonl; W&B writes below it.
        metrics: Options of section metrics.
        options: Every option of the run by section, as the trackers' hyper-parameters.
        step: Number of completed steps; trackers drop what they have of later ones, which will be
            written again.
        tracker_ids: The resumed run's ids by tracker; empty for a new run.

    Raises:
        UserError: A tracker is enabled and its package is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run_folder: Path,
        *,
        metrics: MetricsConfig,
        options: Mapping[str, Mapping[str, Any]],
        step: int,
        tracker_ids: Mapping[str, str],
    ) -> None:
        self.accelerator = accelerator
        self.metrics_file = MetricsFile(run_folder / METRICS_FILE)
        self.evaluations_file = EvaluationsFile(run_folder)
        self._failing: set[str] = set()
        self.tracker_ids = dict(tracker_ids)
        names = enabled_tracker_names(metrics)
        self._start_trackers_or_raise_and_keep_wandb_id(names, run_folder, options, step)
        self.local_writer: Any = None
        if not metrics.rank_0_only:
            # only where it is needed: it takes long to import
            from torch.utils.tensorboard import SummaryWriter

            folder = run_folder / metrics.save_tb_folder / f"rank-{accelerator.process_index}"
            self.local_writer = SummaryWriter(str(folder), purge_step=step + 1)

    def _start_trackers_or_raise_and_keep_wandb_id(
        self,
        names: Sequence[str],
        run_folder: Path,
        options: Mapping[str, Mapping[str, Any]],
        step: int,
    ) -> None:
        if not names:
            return
        # Accelerate leaves out what is not installed
        available = {str(getattr(name, "value", name)) for name in self.accelerator.log_with}
        if missing := set(names) - available:
            raise UserError(
                f"cannot start the tracker {', '.join(sorted(missing))}",
                where="metrics.enable_*",
                remedy="install its package, or disable it",
            )
        init_kwargs: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {
                "dir": str(run_folder),
                "name": run_folder.resolve().name,
                "id": self.tracker_ids.get("wandb"),
                "resume": "allow",
            },
        }
        self.accelerator.init_trackers(
            os.environ.get("WANDB_PROJECT", "flame_accel"),
            flatten_options_without_secrets(options),
            {name: init_kwargs[name] for name in names},
        )
        if self.accelerator.is_main_process and "wandb" in names:
            run: Any = self.accelerator.get_tracker("wandb", unwrap=True)
            self.tracker_ids["wandb"] = run.id

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
        values = {key: value for key, value in record.items() if key != "step"}
        with self._failures_logged("trackers"):
            self.accelerator.log(values, step=int(record["step"]))

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
        if self.local_writer is None:
            return
        with self._failures_logged("TensorBoard"):
            for name, value in values_of_rank.items():
                self.local_writer.add_scalar(name, value, global_step=step)
            self.local_writer.flush()


def flatten_options_without_secrets(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`section.option` -> value, as text without secrets where it is no number."""
    return {
        f"{section}.{name}": value if isinstance(value, (int, float)) else mask_secrets(str(value))
        for section, values in options.items()
        for name, value in values.items()
    }
