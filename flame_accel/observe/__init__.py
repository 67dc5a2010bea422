"""What a run measures, shows and records: meter, console, metrics, profiles, report, run folder."""

from flame_accel.observe.console import ProgressBar, get_logger, log_to_file, setup_console
from flame_accel.observe.data_progress import reduce_data_metrics
from flame_accel.observe.meter import Meter
from flame_accel.observe.metric_logger import MetricLogger, tracker_names
from flame_accel.observe.profiling import StepProfiler, profile_steps
from flame_accel.observe.report import write_report
from flame_accel.observe.run_folder import describe_environment, device_name, prepare_run_folder

__all__ = [
    "Meter",
    "MetricLogger",
    "ProgressBar",
    "StepProfiler",
    "describe_environment",
    "device_name",
    "get_logger",
    "log_to_file",
    "prepare_run_folder",
    "profile_steps",
    "reduce_data_metrics",
    "setup_console",
    "tracker_names",
    "write_report",
]
