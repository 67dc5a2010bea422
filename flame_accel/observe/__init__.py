"""What a run measures, shows and records: meter, console, metrics, profiles, report, run folder."""

from flame_accel.observe.console import (
    build_progress_bar_on_terminal,
    get_logger,
    setup_console_logging,
)
from flame_accel.observe.data_progress import reduce_and_check_data_metrics
from flame_accel.observe.earlier_records import keep_earlier_records
from flame_accel.observe.environment import describe_environment, device_name
from flame_accel.observe.meter import Meter
from flame_accel.observe.metric_logger import MetricLogger
from flame_accel.observe.profiling import StepProfiler, profile_steps
from flame_accel.observe.remaining_time import RemainingTime, build_remaining_time
from flame_accel.observe.report import title_run, write_report
from flame_accel.observe.run_end import log_if_already_finished, record_how_block_ends
from flame_accel.observe.run_folder import (
    check_run_folder_and_log_changes,
    log_changed_kernel_packages,
    write_run_description_and_open_log,
)
from flame_accel.observe.skipped_updates import SkippedUpdates
from flame_accel.observe.trackers import check_trackers_can_start
from flame_accel.observe.watchdog import Watchdog

__all__ = [
    "Meter",
    "MetricLogger",
    "RemainingTime",
    "SkippedUpdates",
    "StepProfiler",
    "Watchdog",
    "build_progress_bar_on_terminal",
    "build_remaining_time",
    "check_run_folder_and_log_changes",
    "check_trackers_can_start",
    "describe_environment",
    "device_name",
    "get_logger",
    "keep_earlier_records",
    "log_changed_kernel_packages",
    "log_if_already_finished",
    "profile_steps",
    "record_how_block_ends",
    "reduce_and_check_data_metrics",
    "setup_console_logging",
    "title_run",
    "write_report",
    "write_run_description_and_open_log",
]
