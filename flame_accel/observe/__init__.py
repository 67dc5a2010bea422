"""What a run shows and leaves: meter, console, records, report and its folder's descriptions."""

from flame_accel.observe.console import Progress, copy_console_to, get_logger, open_console
from flame_accel.observe.data_progress import data_metrics
from flame_accel.observe.meter import Meter
from flame_accel.observe.metric_logger import MetricLogger, tracker_names
from flame_accel.observe.profiling import StepProfiler, profile_steps
from flame_accel.observe.report import write_report
from flame_accel.observe.run_folder import describe_environment, device_name, open_run_folder

__all__ = [
    "Meter",
    "MetricLogger",
    "Progress",
    "StepProfiler",
    "copy_console_to",
    "data_metrics",
    "describe_environment",
    "device_name",
    "get_logger",
    "open_console",
    "open_run_folder",
    "profile_steps",
    "tracker_names",
    "write_report",
]
