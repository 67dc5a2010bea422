"""What a run measures, shows and records: meter, console, metrics, profiles, report, run folder."""

from flame_accel.observe.console import ProgressBar, add_log_file, get_logger, setup_console_logging
from flame_accel.observe.data_progress import reduce_and_check_data_metrics
from flame_accel.observe.meter import Meter
from flame_accel.observe.metric_logger import MetricLogger, enabled_tracker_names
from flame_accel.observe.profiling import StepProfiler, profile_steps
from flame_accel.observe.report import write_report
from flame_accel.observe.run_folder import (
    describe_environment,
    device_name,
    prepare_run_folder_and_list_changes,
)

__all__ = [
    "Meter",
    "MetricLogger",
    "ProgressBar",
    "StepProfiler",
    "add_log_file",
    "describe_environment",
    "device_name",
    "enabled_tracker_names",
    "get_logger",
    "prepare_run_folder_and_list_changes",
    "profile_steps",
    "reduce_and_check_data_metrics",
    "setup_console_logging",
    "write_report",
]
